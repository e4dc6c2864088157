"""The figures of the source count what they say, each on a small source whose offenders are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import figures
from benchmarks.figures import FIGURES, Source, main
from benchmarks.imports import ROOMS, ROOT, floors, modules

LONG = "def long():\n" + "    x = 1\n" * 50
CPP = """
#include <vector>
// a comment with { braces
namespace one {
struct Point {
    int x{0};
    std::vector<int> many = {1, 2};
    explicit Point(int x_) : x(x_) {
BODY
    }
};
template <class T>
int far(const T& value,
        int most_far) {
    const char* text = "{";  // {
    auto inner = [&](int i) {
        return i;
    };
BODY
    return inner('{');
}
}  // namespace one
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for folder in ("src/splatopt/core", "src/splatopt/optim", "src/splatopt/meta", "native"):
        (tmp_path / folder).mkdir(parents=True)
    for room in ("", "core/", "optim/", "meta/"):
        (tmp_path / "src/splatopt" / room / "__init__.py").write_text("")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / "src/splatopt" / name).write_text(text)


def counted(root: Path, name: str) -> list[str]:
    return [str(one) for one in FIGURES[name][0](Source(root))]


def test_signatures_leave_self_and_triton_out(root: Path):
    nine = "a, b, c, d, e, f, g, h, i"
    write(
        root,
        "core/a.py",
        f"class A:\n    def f(self, {nine[:-3]}): ...\n    def g(self, {nine}): ...\n\n@jit\ndef k({nine}): ...\n",
    )
    write(root, "core/b.py", "def f(a, b, /, c, *d, e, f, g, h, **i): ...\n")
    assert counted(root, "signatures") == [
        "src/splatopt/core/a.py:3: g has 9 parameters",
        "src/splatopt/core/b.py:1: f has 9 parameters",
    ]


def test_long_python_functions_and_files(root: Path):
    write(root, "core/a.py", "import os\n" + LONG + "def short():\n" + "    x = 1\n" * 49)
    write(root, "core/b.py", "x = 1\n" * 401)
    write(root, "core/c.py", "x = 1\n" * 400)
    assert counted(root, "long-python") == ["src/splatopt/core/a.py:2: long has 51 lines"]
    assert counted(root, "long-files") == ["src/splatopt/core/b.py:1: 401 lines"]


def test_cpp_functions_from_signature_to_brace(root: Path):
    (root / "native/a.cpp").write_text(CPP.replace("BODY", "    // line\n" * 74 + "    int y = 0;"))
    assert counted(root, "long-cpp") == ["native/a.cpp:86: far has 84 lines"]
    assert [(name, last - first + 1) for name, first, last in Source(root).cpp[0].functions] == [
        ("Point", 77),
        ("far", 84),
    ]
    assert counted(root, "least-most") == ["native/a.cpp:88: most_far"]


def test_imports_upward_and_in_circles_count_deferred_ones(root: Path):
    write(root, "core/a.py", 'def f():\n    from splatopt.optim import b\n\nNAMES = ("splatopt.meta",)\n')
    write(root, "optim/b.py", '"""splatopt.meta"""\nfrom splatopt.core.a import f\n')
    write(root, "meta/c.py", "from ..optim import b\nfrom . import c\n")
    assert counted(root, "imports-upward") == [
        "src/splatopt/core/a.py:2: splatopt.core.a imports splatopt.optim.b, deferred",
        "src/splatopt/core/a.py:4: splatopt.core.a imports splatopt.meta, deferred",
    ]
    assert counted(root, "import-cycles") == ["src/splatopt/core/a.py:1: splatopt.core.a ↔ splatopt.optim.b"]


def test_words_and_names(root: Path):
    write(
        root,
        "core/a.py",
        '"""least_words and promises in a docstring."""\nleast_size = 1\nmost_common = 2\nfoo = "--x.most-growth"\n',
    )
    write(
        root,
        "core/made.py",
        "class MadeScene:\n    made = pushed = 0  # photo\n    push_back = made\n    pushed\n",
    )
    assert counted(root, "least-most") == [
        "src/splatopt/core/a.py:1: least_words",
        "src/splatopt/core/a.py:2: least_size",
        "src/splatopt/core/a.py:4: most-growth",
    ]
    assert counted(root, "private-words") == [
        "src/splatopt/core/made.py:1: made, the file's name (synthetic)",
        "src/splatopt/core/made.py:1: MadeScene (made: synthetic)",
        "src/splatopt/core/made.py:2: pushed (pushed: jvp)",
    ]


def test_tensor_names_and_ssim_weight(root: Path):
    names = '"means", "log_scales", "quats", "logit_opacities", "sh_dc"'
    write(root, "core/a.py", f'A = ({names})\nB = {{{names.replace(",", ": 1,")}: 2}}\nC = ("means", "quats")\n')
    write(root, "core/b.py", "\nssim_weight = 0.2\nssim_weight\n")
    (root / "native/a.h").write_text("float ssim_weight;\n")
    assert counted(root, "tensor-names") == ["src/splatopt/core/a.py:1: lists the tensors' names"]
    assert counted(root, "ssim-weight") == [
        "src/splatopt/core/b.py:2: names ssim_weight",
        "native/a.h:1: names ssim_weight",
    ]


def test_any_outside_imports_and_in_the_protocol(root: Path):
    write(
        root,
        "core/objective.py",
        '"""Any text."""\nfrom typing import (\n    Any,\n)\n\n\nclass Objective:\n'
        "    def f(self, batch: Any) -> int: ...\n"
        "    def g(self, batch: Any, x: list[Any]) -> Any: ...\n    def _h(self, x: Any): ...\n",
    )
    assert [one.split(": ")[0] for one in counted(root, "any")] == [
        f"src/splatopt/core/objective.py:{line}" for line in (8, 9, 10)
    ]
    assert counted(root, "any-in-protocol") == [
        "src/splatopt/core/objective.py:9: Objective.g, returns: Any",
        "src/splatopt/core/objective.py:9: Objective.g, x: list[Any]",
    ]


def test_code_lines_leave_blanks_comments_and_docstrings_out(root: Path):
    write(
        root,
        "core/a.py",
        '"""Doc.\n\nMore."""\n\n# comment\nx = """a\n\nb"""\n\n\nclass A:\n    y: int = 1\n    """Help."""\n',
    )
    (root / "native/a.h").write_text("#pragma once\n\n// comment\n/* two\nlines */ int x; // one\nint y;\n")
    assert [one for one in counted(root, "code-lines") if " 0 lines" not in one] == [
        "src/splatopt/core/a.py:1: 5 lines of code",
        "native/a.h:1: 3 lines of code",
    ]


def test_the_command_lists_offenders_and_says_whether_a_bar_is_passed(root: Path, monkeypatch, capsys):
    write(root, "core/a.py", LONG)
    assert main(["long-python", "--root", str(root)]) == 0
    assert "a.py:1" not in capsys.readouterr().out
    monkeypatch.setitem(FIGURES, "long-python", (figures.long_python, 0))
    assert main(["long-python", "--root", str(root)]) == 1
    out = capsys.readouterr().out
    assert "ABOVE ITS BAR" in out
    assert "    src/splatopt/core/a.py:1: long has 51 lines" in out


def test_the_table_of_rooms_is_that_of_the_import_contracts():
    lines = floors()
    assert {room for line in lines for room in line} == {*ROOMS, "cli", "commands", "__main__"}
    height = {room: -number for number, line in enumerate(lines) for room in line}
    for room, allowed in ROOMS.items():
        assert {one for one in allowed if height[one] >= height[room]} == set(), (
            f"{room} may import nothing beside or above it"
        )
    assert {name.split(".")[1] for name in modules() if "." in name} <= {*ROOMS, "cli", "commands", "__main__"}
