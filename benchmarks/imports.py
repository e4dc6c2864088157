"""Who imports whom within the package, read from the source: rooms, modules, and where each import stands."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "splatopt"

BELOW_SCENE = ("raster", "curvature", "metrics", "data", "kernels", "core")
BELOW_META = ("density", "scene", "fields", "optim", *BELOW_SCENE)
BELOW_TRAIN = ("torch_api", "meta", "runs", *BELOW_META)
ROOMS: dict[str, tuple[str, ...]] = {
    "viewer": ("report", "train", "fit", *BELOW_TRAIN),
    "bench": ("report", "train", "fit", *BELOW_TRAIN),
    "report": ("train", "fit", *BELOW_TRAIN),
    "train": BELOW_TRAIN,
    "fit": BELOW_TRAIN,
    "torch_api": ("meta", *BELOW_META),
    "meta": BELOW_META,
    "runs": ("core",),
    "density": ("scene", *BELOW_SCENE),
    "scene": ("raster", "metrics", "data", "core"),
    "fields": ("metrics", "data", "core"),
    "optim": ("curvature", "kernels", "core"),
    "raster": ("kernels", "core"),
    "curvature": ("core",),
    "data": ("core",),
    "metrics": ("core",),
    "kernels": ("core",),
    "core": (),
}
"""What each room may import; ``cli`` and ``commands`` may import all. A room need not exist yet."""


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another.

    Attributes:
        importer: The importing module, such as ``splatopt.train.loop``.
        imported: The imported module.
        path: The importing file, below the repository.
        line: Where it stands.
        deferred: Whether it runs only when a function is called, or for types alone, or names the module as text.
    """

    importer: str
    imported: str
    path: Path
    line: int
    deferred: bool

    @property
    def rooms(self) -> tuple[str, str]:
        """The rooms of both ends."""
        return room_of(self.importer), room_of(self.imported)


def room_of(module: str) -> str:
    """Return the room of a module: its folder, or its file's name on the first floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floors(root: Path = ROOT) -> list[list[str]]:
    """Return the rooms line by line from the top, as the import contracts of ``pyproject.toml`` name them."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [[room.strip(" ()") for room in line.split("|")] for line in contracts[0]["layers"]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the package's modules by name, sorted, with their files."""
    source = root / "src"
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


def imports(root: Path = ROOT) -> list[Import]:
    """Return every import within the package, those of the package's own front door left out."""
    known = modules(root)
    found = []
    for name, path in known.items():
        if name == PACKAGE:
            continue  # it hands out names of all rooms when they are asked for, and is no room
        tree = ast.parse(path.read_text())
        docstrings = set(map(id, texts_alone(tree)))
        for node, deferred in walk(tree.body, deferred=False):
            targets = [one for one in _targets(node, name, path, known) if id(node) not in docstrings]
            deferred_here = deferred or isinstance(node, ast.Constant)
            found += [Import(name, one, path.relative_to(root), node.lineno, deferred_here) for one in targets]
    return [one for one in found if one.importer != one.imported]


def walk(body: Iterable[ast.AST], *, deferred: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield all nodes, each with whether it runs later than the import of its module or for types alone."""
    for node in body:
        yield node, deferred
        later = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            later = True
        yield from walk(ast.iter_child_nodes(node), deferred=later)


def texts_alone(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the texts that stand as statements: docstrings, and the help under a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def _targets(node: ast.AST, importer: str, path: Path, known: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [one.name for one in node.names if one.name in known]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = importer.split(".")
            here = parts[: len(parts) - node.level + (path.name == "__init__.py")]
            base = ".".join([*here, *([base] if base else [])])
        inside = [f"{base}.{one.name}" if f"{base}.{one.name}" in known else base for one in node.names]
        return sorted({one for one in inside if one in known})
    # A module's name as text is imported by it somewhere, as registries do; before a dot it is the folder's.
    text = node.value if isinstance(node, ast.Constant) else None
    named = re.fullmatch(rf"({PACKAGE}(?:\.\w+)+)\.?", text) if isinstance(text, str) else None
    return [named[1]] if named and named[1] in known else []


def upward(found: Iterable[Import]) -> list[Import]:
    """Return the imports that the table of rooms does not allow."""
    return [one for one in found if one.rooms[0] != one.rooms[1] and not _allowed(*one.rooms)]


def _allowed(importer: str, imported: str) -> bool:
    if importer in {"cli", "commands", "__main__"}:
        return imported != "cli" or importer == "__main__"
    return imported in ROOMS.get(importer, ())


def cycles(found: Iterable[Import]) -> list[list[str]]:
    """Return groups of modules that import each other in a circle, deferred imports counted (Tarjan 1972)."""
    edges: dict[str, set[str]] = {}
    for one in found:
        edges.setdefault(one.importer, set()).add(one.imported)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(edges.get(module, ())):
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            circle = [stack.pop()]
            while circle[-1] != module:
                circle.append(stack.pop())
            if len(circle) > 1:
                circles.append(sorted(circle))

    for module in sorted(edges):
        if module not in order:
            visit(module)
    return circles
