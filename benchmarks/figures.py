"""Figures of the source that are kept within bounds: `python -m benchmarks.figures [NAME …] [--all]`.

Each figure counts offenders in ``src/splatopt`` and ``native``, such as functions that are too long, and may have as
many as its bar says. Those of figures above their bar are listed by file and line, with ``--all`` those of all; the
exit code is 1 where one is above its bar. Triton kernels, the functions under ``@jit``, are left out of lengths and
signatures, since one program is one function there. Part of ``make lint``.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.imports import ROOT, cycles, imports, modules, texts_alone, upward

MAX_PARAMETERS = 8
MAX_PYTHON_LINES = 50
MAX_CPP_LINES = 80
MAX_FILE_LINES = 400
GAUSSIAN_TENSORS = frozenset({"means", "log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest"})
MIN_TENSORS = 5
"""A literal with as many of the tensors' names counts as the tuple of them all."""
PRIVATE_WORDS = {
    "made": "synthetic",
    "photo": "image",
    "photograph": "image",
    "photographs": "image",
    "photos": "image",
    "piece": "microbatch, part",
    "pieces": "microbatches, parts",
    "promise": "predicted reduction",
    "promised": "predicted reduction",
    "promises": "predicted reduction",
    "pulled": "vjp",
    "pushed": "jvp",
    "turning": "transpose",
    "worth": "actual reduction, gain ratio",
}
"""Words that the field has a better one for; each part of an identifier between underscores is looked up."""
PRIVATE_MODULES = {"made": "synthetic", "starts": "initialization"}
"""Names of files and folders that have a better one, though the word may name a variable."""
STANDARD_NAMES = frozenset({"made", "most_common", "push_back"})
"""Names that are Python's or C++'s own, or plain words for a variable."""
CODE_LINES = 46_500
"""Lines of code with tests of the faults of starts, fields, their optimizers and meta-training that readings found;
45,800 before them."""


@dataclass(frozen=True)
class Offender:
    """One thing that a figure counts.

    Attributes:
        path: Its file, below the repository.
        line: Its first line.
        what: Its name, with the number that makes it one.
        weight: How much it adds to the figure.
    """

    path: Path
    line: int
    what: str
    weight: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


@dataclass(frozen=True)
class PythonFile:
    """A module's source and its syntax tree."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods outside Triton's language."""
        found = [one for one in ast.walk(self.tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        return [one for one in found if not any("jit" in ast.unparse(mark) for mark in one.decorator_list)]

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        """What the file consists of."""
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def import_lines(self) -> set[int]:
        """The lines of import statements."""
        found = [one for one in ast.walk(self.tree) if isinstance(one, ast.Import | ast.ImportFrom)]
        return {line for one in found for line in range(one.lineno, one.end_lineno + 1)}

    @cached_property
    def names(self) -> list[tuple[int, str]]:
        """Every identifier with its line, the places of use included."""
        return [(one.start[0], one.string) for one in self.tokens if one.type == tokenize.NAME]


@dataclass(frozen=True)
class CppFile:
    """A C++ source, and the same without comments and texts, line by line."""

    path: Path
    text: str

    @cached_property
    def bare(self) -> str:
        """The source with comments and texts blanked."""
        pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])\''
        return re.sub(pattern, _blanks, self.text, flags=re.DOTALL)

    @cached_property
    def functions(self) -> list[tuple[str, int, int]]:
        """Name, first and last line of every function outside other functions; lambdas within count with theirs."""
        code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", _blanks, self.bare, flags=re.MULTILINE)
        found, blocks, header, start = [], [], "", 0
        for at, sign in enumerate(code):
            outside = not blocks or blocks[-1][0] == "scope"
            if sign == "{":
                kind = _kind_of_block(header) if outside else "inner"
                blocks.append((kind, header, start))
                header = ""
            elif sign == "}" and blocks:
                kind, before, start = blocks.pop()
                if kind == "function":
                    first, last = (code.count("\n", 0, place) + 1 for place in (start, at))
                    found.append((_function_name(before), first, last))
                header = before + "{}" if kind == "initializer" else ""
            elif outside and sign == ";":
                header = ""
            elif outside and (header or not sign.isspace()):
                start = start if header else at
                header += sign
        return found


def _blanks(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def _kind_of_block(header: str) -> str:
    """What a brace outside functions opens: a scope, a function, or the value of a variable or member."""
    text = re.sub(r"\s+", " ", header).strip()
    if re.search(r"\benum\b", text) or text.endswith("="):
        return "initializer"
    if re.search(r"\)\s*(const|noexcept|override|final|mutable|&|->\s*[\w:<>*& ]+)*$", text):
        return "function"
    if re.search(r"\)\s*(noexcept\s*)?:\s", text):
        return "function" if text.endswith("}") else "initializer"
    if re.search(r"\b(namespace|struct|class|union)\b|^extern\b", text):
        return "scope"
    return "initializer"


def _function_name(header: str) -> str:
    found = re.search(r"([\w:~]+)\s*\(", header)
    return found[1] if found else " ".join(header.split())[:40]


@dataclass(frozen=True)
class Source:
    """The package and the native module."""

    root: Path

    @cached_property
    def python(self) -> list[PythonFile]:
        """The package's modules."""
        return [PythonFile(path.relative_to(self.root), path.read_text()) for path in modules(self.root).values()]

    @cached_property
    def cpp(self) -> list[CppFile]:
        """The native module's files."""
        found = sorted(path for kind in ("cpp", "h", "inl") for path in (self.root / "native").rglob(f"*.{kind}"))
        return [CppFile(path.relative_to(self.root), path.read_text()) for path in found]


def signatures(source: Source) -> Iterator[Offender]:
    """Python functions with more than 8 parameters, self and cls not counted."""
    for file in source.python:
        for one in file.functions:
            named = [*one.args.posonlyargs, *one.args.args]
            bound = bool(named) and named[0].arg in {"self", "cls"}
            extra = (one.args.vararg is not None) + (one.args.kwarg is not None)
            count = len(named) + len(one.args.kwonlyargs) + extra - bound
            if count > MAX_PARAMETERS:
                yield Offender(file.path, one.lineno, f"{one.name} has {count} parameters")


def long_python(source: Source) -> Iterator[Offender]:
    """Python functions of more than 50 lines, docstring included."""
    for file in source.python:
        for one in file.functions:
            count = one.end_lineno - one.lineno + 1
            if count > MAX_PYTHON_LINES:
                yield Offender(file.path, one.lineno, f"{one.name} has {count} lines")


def long_cpp(source: Source) -> Iterator[Offender]:
    """C++ functions of more than 80 lines."""
    for file in source.cpp:
        for name, first, last in file.functions:
            if last - first + 1 > MAX_CPP_LINES:
                yield Offender(file.path, first, f"{name} has {last - first + 1} lines")


def long_files(source: Source) -> Iterator[Offender]:
    """Python and C++ files of more than 400 lines."""
    for file in (*source.python, *source.cpp):
        count = file.text.count("\n")
        if count > MAX_FILE_LINES:
            yield Offender(file.path, 1, f"{count} lines")


def circles(source: Source) -> Iterator[Offender]:
    """Circles of modules that import each other, deferred imports counted."""
    paths = modules(source.root)
    for circle in cycles(imports(source.root)):
        yield Offender(paths[circle[0]].relative_to(source.root), 1, " ↔ ".join(circle))


def imports_upward(source: Source) -> Iterator[Offender]:
    """Imports that the table of rooms in benchmarks/imports.py does not allow, deferred ones counted."""
    for one in upward(imports(source.root)):
        how = ", deferred" if one.deferred else ""
        yield Offender(one.path, one.line, f"{one.importer} imports {one.imported}{how}")


def ssim_weight(source: Source) -> Iterator[Offender]:
    """Files that name ssim_weight, the list of all settings' types left out."""
    for file in (*source.python, *source.cpp):
        if file.path.parts[-2:] == ("train", "settings.py"):
            continue
        where = file.text.find("ssim_weight")
        if where >= 0:
            yield Offender(file.path, file.text.count("\n", 0, where) + 1, "names ssim_weight")


def tensor_names(source: Source) -> Iterator[Offender]:
    """Tuples and lists of the Gaussian tensors' names."""
    for file in source.python:
        for node in ast.walk(file.tree):
            listed = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []
            texts = {one.value for one in listed if isinstance(one, ast.Constant)}
            if len(texts & GAUSSIAN_TENSORS) >= MIN_TENSORS:
                yield Offender(file.path, node.lineno, "lists the tensors' names")


def lines_with_any(source: Source) -> Iterator[Offender]:
    """Lines with Any, imports left out."""
    for file in source.python:
        lines = {line for line, name in file.names if name == "Any"} - file.import_lines
        yield from (Offender(file.path, line, file.text.splitlines()[line - 1].strip()) for line in sorted(lines))


def any_in_protocol(source: Source) -> Iterator[Offender]:
    """Annotations with Any in public methods of Objective and Optimizer, the parameter `batch` left out."""
    for file in source.python:
        for holder in ast.walk(file.tree):
            if not isinstance(holder, ast.ClassDef) or holder.name not in {"Objective", "Optimizer"}:
                continue
            methods = [one for one in holder.body if isinstance(one, ast.FunctionDef)]
            for one in methods:
                if one.name.startswith("_") and one.name != "__init__":
                    continue
                spots = {"returns": one.returns}
                arguments = (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs)
                spots |= {argument.arg: argument.annotation for argument in arguments}
                for spot, annotation in spots.items():
                    text = ast.unparse(annotation) if annotation else ""
                    if spot != "batch" and re.search(r"\bAny\b", text):
                        yield Offender(file.path, one.lineno, f"{holder.name}.{one.name}, {spot}: {text}")


def least_and_most(source: Source) -> Iterator[Offender]:
    """Names with least_ or most_, options and messages included."""
    pattern = re.compile(r"\b\w*?(?<![a-z])(?:least|most)_\w+|(?<=[.])(?:least|most)-[\w-]+", re.IGNORECASE)
    for file in (*source.python, *source.cpp):
        for number, line in enumerate(file.text.splitlines(), 1):
            names = [found[0] for found in pattern.finditer(line)]
            yield from (Offender(file.path, number, name) for name in names if name not in STANDARD_NAMES)


def private_words(source: Source) -> Iterator[Offender]:
    """Identifiers, modules and native files with a word that the field has a better one for; each once a file."""
    for file in (*source.python, *source.cpp):
        stem = file.path.parent.name if file.path.stem == "__init__" else file.path.stem
        if stem in PRIVATE_MODULES:
            yield Offender(file.path, 1, f"{stem}, the file's name ({PRIVATE_MODULES[stem]})")
        names = file.names if isinstance(file, PythonFile) else _cpp_names(file)
        seen = set(STANDARD_NAMES)
        for line, name in [(1, stem), *names]:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
            better = [f"{word}: {PRIVATE_WORDS[word]}" for word in words if word in PRIVATE_WORDS]
            if better and name not in seen:
                yield Offender(file.path, line, f"{name} ({'; '.join(better)})")
            seen.add(name)


def _cpp_names(file: CppFile) -> list[tuple[int, str]]:
    lines = file.bare.splitlines()
    return [(number, name) for number, line in enumerate(lines, 1) for name in re.findall(r"\b[A-Za-z_]\w*", line)]


def code_lines(source: Source) -> Iterator[Offender]:
    """Lines of code without blanks, comments and docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for file in source.python:
        texts = {line for one in texts_alone(file.tree) for line in range(one.lineno, one.end_lineno + 1)}
        spans = [range(one.start[0], one.end[0] + 1) for one in file.tokens if one.type not in skipped]
        count = len({line for span in spans for line in span} - texts)
        yield Offender(file.path, 1, f"{count} lines of code", count)
    for file in source.cpp:
        code = re.sub(r"//[^\n]*|/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), file.text, flags=re.DOTALL)
        count = sum(bool(line.strip()) for line in code.splitlines())
        yield Offender(file.path, 1, f"{count} lines of code", count)


FIGURES: dict[str, tuple[Callable[[Source], Iterator[Offender]], int]] = {
    "signatures": (signatures, 6),
    "long-python": (long_python, 2),
    "long-cpp": (long_cpp, 0),
    "long-files": (long_files, 3),
    "import-cycles": (circles, 0),
    "imports-upward": (imports_upward, 0),
    "ssim-weight": (ssim_weight, 4),
    "tensor-names": (tensor_names, 1),
    "any": (lines_with_any, 220),
    "any-in-protocol": (any_in_protocol, 0),
    "least-most": (least_and_most, 0),
    "private-words": (private_words, 0),
    "code-lines": (code_lines, CODE_LINES),
}
"""Name, what counts, and how much of it there may be."""


def main(words: list[str] | None = None) -> int:
    """Print the figures; return 1 where one is above its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--all", action="store_true", help="list offenders of figures within their bar too")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository; this one if not given")
    arguments = parser.parse_args(words)
    source, above = Source(arguments.root), 0
    for name in arguments.names or FIGURES:
        count, bar = FIGURES[name]
        offenders = list(count(source))
        figure = sum(one.weight for one in offenders)
        above += figure > bar
        verdict = "ABOVE ITS BAR" if figure > bar else "ok"
        print(f"{name:16} {figure:6,} of at most {bar:6,}  {verdict:14} {(count.__doc__ or '').rstrip('.')}")
        if arguments.all or (figure > bar and name != "code-lines"):
            print(*(f"    {one}" for one in offenders), sep="\n")
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
