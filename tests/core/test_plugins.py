"""The door: names from files and from packages, and what is said where one is broken, unknown or taken."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import splatopt
from core.things import THINGS
from optim.quadratic import Quadratic
from splatopt.core import optimizer as optimizer_module
from splatopt.core.checks import InputError
from splatopt.core.optimizer import OPTIMIZERS, Progress, find_optimizer, optimizer_names, register
from splatopt.core.plugins import Origin, PluginFile, as_plugins, load_plugin, loaded_plugins


@pytest.fixture(autouse=True)
def empty():
    THINGS._entries.clear()
    yield
    THINGS._entries.clear()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def thing(path: Path, name: str, value: int = 1) -> Path:
    return write(path, f"from core.things import add\n\nadd({name!r}, {value})\n")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package: a module, and a folder of metadata with its entry points."""

    def do(package: str, module: str, points: dict[str, str], group: str = THINGS.group) -> None:
        write(tmp_path / f"{package}.py", module)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        write(metadata / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        write(metadata / "entry_points.txt", f"[{group}]\n{lines}")

    monkeypatch.syspath_prepend(str(tmp_path))
    yield do
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# ---------------------------------------------------------------------- files


def test_a_file_registers_and_is_known_by_path_and_digest(tmp_path):
    path = thing(tmp_path / "one.py", "first", 7)
    found = load_plugin(path)
    assert found == PluginFile(path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())
    assert THINGS.find("first") == 7
    assert THINGS.names(Origin.GIVEN) == ("first",)
    assert THINGS.origin("first") is Origin.GIVEN
    assert str(THINGS.place("first")) == f"{path.resolve()}:3"
    assert found in loaded_plugins()
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_is_run_once_until_it_changes(tmp_path):
    path = thing(tmp_path / "one.py", "first", 1)
    before = load_plugin(path)
    assert load_plugin(str(path)) == before, "the name would be taken if it ran twice"
    thing(path, "second", 2)
    after = load_plugin(path)
    assert after.sha256 != before.sha256
    assert THINGS.names() == ("second",), "what the file had registered is forgotten"


def test_the_same_file_given_twice_counts_once(tmp_path):
    path = thing(tmp_path / "one.py", "first")
    assert as_plugins([path, str(path), load_plugin(path)]) == (load_plugin(path),)
    with pytest.raises(InputError, match=r"must be a list of Python files, got 'one.py'; write \['one.py'\]"):
        as_plugins("one.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n    pass\n", r"one\.py, line 1: SyntaxError: "),
        ("x = 1\n\nimport no_such_module\n", r"one\.py, line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("\n\n\nraise RuntimeError('two\\nlines')\n", r"one\.py, line 4: RuntimeError: two lines"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"one\.py, line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('no')\n", r"one\.py, line 2: SystemExit: no"),
        (
            "from dataclasses import field, dataclass\n@dataclass\nclass A:\n    x: list = []\n",
            r"one\.py, line 2: ValueError",
        ),
        ("x = '\0'\n", r"(SyntaxError|ValueError): source code (string )?cannot contain null bytes"),
        ("from core.things import add\nadd('a b', 1)\n", r"line 2: a thing must have a name of letters"),
    ],
)
def test_a_file_that_fails_is_one_sentence_with_its_line(tmp_path, text, said):
    path = tmp_path / "one.py"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^the plug-in .*one\.py cannot be loaded: .*{said}.*; mend it$") as caught:
        load_plugin(path)
    assert "\n" not in str(caught.value)
    assert path.resolve() not in [one.path for one in loaded_plugins()]


def test_what_a_failing_file_registered_is_taken_back(tmp_path):
    path = write(tmp_path / "one.py", "from core.things import add\nadd('first', 1)\nraise ValueError('late')\n")
    with pytest.raises(InputError, match="late"):
        load_plugin(path)
    assert THINGS.names() == ()
    thing(path, "first")
    assert load_plugin(path)
    assert THINGS.names() == ("first",)


@pytest.mark.parametrize(("make", "said"), [(lambda path: None, "is not there"), (Path.mkdir, "it is a folder")])
def test_a_file_that_is_none_is_refused(tmp_path, make, said):
    path = tmp_path / "one.py"
    make(path)
    with pytest.raises(InputError, match=f"{said}.*give a Python file with --plugin"):
        load_plugin(path)


def test_a_name_that_is_taken_names_both_places(tmp_path):
    load_plugin(thing(tmp_path / "one.py", "first"))
    said = r"two\.py, line 3: .*'first' is registered already: in .*one\.py:3, and now in .*two\.py:3"
    with pytest.raises(InputError, match=said):
        load_plugin(thing(tmp_path / "two.py", "first"))


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    load_plugin(thing(tmp_path / "one.py", "first"))
    with pytest.raises(InputError, match="no thing is named 'frist'; did you mean first?"):
        THINGS.find("frist")


# ---------------------------------------------------------------------- installed packages


def test_a_package_is_imported_when_its_name_is_asked_for(install):
    install("things_a", "from core.things import add\nadd('first', 3)\n", {"first": "things_a"})
    assert dict(THINGS.offered()) == {"first": "things_a"}
    assert "things_a" not in sys.modules
    assert THINGS.find("first") == 3
    assert THINGS.origin("first") is Origin.INSTALLED
    assert dict(THINGS.offered()) == {}


def test_a_broken_package_stops_nobody_else(install):
    install("things_b", "x = 1\nraise KeyError('gone')\n", {"broken": "things_b"})
    install("things_c", "from core.things import add\nadd('whole', 3)\n", {"whole": "things_c"})
    assert THINGS.find("whole") == 3
    with pytest.raises(InputError, match="no thing is named 'hole'; did you mean whole?"):
        THINGS.find("hole")
    for _ in range(2):
        said = r"'broken' of the package things_b cannot be loaded: .*things_b\.py, line 2: KeyError: 'gone'; mend or"
        with pytest.raises(InputError, match=said):
            THINGS.find("broken")


def test_a_package_that_does_not_register_what_it_offers(install):
    install("things_d", "x = 1\n", {"absent": "things_d"})
    with pytest.raises(InputError, match="things_d is things_d, which registers no thing of that name"):
        THINGS.find("absent")


def test_a_module_that_is_not_there(install):
    install("things_e", "x = 1\n", {"lost": "things_nowhere:thing"})
    said = "'lost' of the package things_e cannot be loaded: .*No module named 'things_nowhere'"
    with pytest.raises(InputError, match=said):
        THINGS.find("lost")


def test_two_packages_that_offer_the_same_name(install):
    for package in ("things_f", "things_g"):
        install(package, "", {"same": package})
    with pytest.raises(InputError, match="'same' is offered twice, by things_[fg] and things_[fg]; uninstall one"):
        THINGS.find("same")


def test_a_file_comes_before_a_package(install, tmp_path):
    install("things_h", "raise RuntimeError", {"first": "things_h"})
    load_plugin(thing(tmp_path / "one.py", "first", 5))
    assert THINGS.find("first") == 5


# ---------------------------------------------------------------------- optimizers


def test_the_example_of_the_protocol_runs():
    text = optimizer_module.__doc__.split("::\n", maxsplit=1)[1]
    names: dict = {"__name__": "example"}
    try:
        exec(compile(textwrap.dedent(text), "the example", "exec", dont_inherit=True), names)
        assert "sign" in optimizer_names()
        objective = Quadratic()
        entry = find_optimizer("sign")
        optimizer = entry.optimizer(objective, entry.options(rate=0.01))
        before = {name: value.clone() for name, value in objective.parameters.items()}
        evaluation = optimizer.step(None, Progress(0, 10))
        for name, value in objective.parameters.items():
            assert torch.equal(value, before[name] - 0.01 * evaluation.gradient[name].sign())
        optimizer.load_state(optimizer.state())
    finally:
        if "sign" in OPTIMIZERS.names():
            OPTIMIZERS.forget("sign")


@dataclass(frozen=True)
class Needy:
    rate: float


def test_options_that_need_an_argument_are_refused():
    adam = find_optimizer("adam").optimizer
    with pytest.raises(InputError, match=r"test_plugins\.py:\d+ cannot be made without arguments .*every field"):
        register("needy", adam, Needy)
    with pytest.raises(InputError, match="must be a dataclass, got <class 'dict'>"):
        register("needy", adam, dict)
    assert "needy" not in optimizer_names()


def test_the_packages_own_names_are_taken_whatever_was_imported_before(tmp_path):
    path = write(
        tmp_path / "mine.py",
        """
        import splatopt
        from splatopt.optim.first_order import Adam, AdamOptions
        splatopt.register("tr2", Adam, AdamOptions)
        """,
    )
    said = r"mine\.py, line 4: an optimizer named 'tr2' is registered already: in .*diagonal_gauss_newton\.py:\d+"
    with pytest.raises(InputError, match=said):
        splatopt.train(tmp_path, plugins=[path])


def test_what_a_plugin_brings_in_of_splatopts_own_stays_when_it_fails_or_changes(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from splatopt.core.checks import InputError
        from splatopt.core.optimizer import optimizer_names
        from splatopt.core.plugins import load_plugin

        path = Path(sys.argv[1])
        path.write_text("import splatopt\\nfrom splatopt import register_loss, register_reader\\n"
                        "splatopt.optimizer_names()\\n1/0\\n")
        try:
            load_plugin(path)
        except InputError as error:
            assert "ZeroDivisionError" in str(error)
        else:
            raise AssertionError("it was loaded")
        for text in ("import splatopt\\n", "import splatopt  # changed\\n"):
            path.write_text(text)
            load_plugin(path)
            from splatopt.data.readers import READERS
            from splatopt.raster.loss_registry import LOSSES
            assert {"adam", "learned"} <= set(optimizer_names())
            assert "l1-ssim" in LOSSES.names() and "colmap" in READERS.names()
    """
    file = write(tmp_path / "script.py", script)
    done = subprocess.run([sys.executable, file, tmp_path / "one.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
