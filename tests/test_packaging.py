"""What the package says about itself agrees with what is there."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

import splatopt

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(splatopt.__file__).parent


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(text: str) -> str:
    return normal(re.match(r"[A-Za-z0-9._-]+", text)[0])


def test_versions_agree(project: dict):
    assert splatopt.__version__ == project["version"]


def test_every_requirement_is_pinned_and_meets_its_floor(project: dict, pins: dict[str, str]):
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values()), *build]
    assert len(requirements) >= 20
    for requirement in requirements:
        name, floor = requirement_name(requirement), requirement.split(">=")[1].partition(";")[0]
        assert name in pins, f"{name} has no pin in constraints.txt"
        assert numbers(pins[name]) >= numbers(floor), f"{name} is pinned below its floor"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition(".post")[0].split("."))


def test_requirements_are_floors_only(project: dict):
    for requirement in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]:
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+(; (platform_machine|sys_platform) == '\w+')?", requirement), (
            f"{requirement}: exact pins belong in constraints.txt"
        )


def test_what_is_required_is_what_is_imported(project: dict):
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.split(".")[0] for name in names}
    called = {"pillow": "PIL", "scikit-image": "skimage", "pi-heif": "pi_heif"}
    required = {called.get(name, name) for name in map(requirement_name, project["dependencies"])}
    assert required <= imported, "what only the tests use belongs to the dev extra"
    extras = project["optional-dependencies"].items()
    optional = {
        called.get(one := requirement_name(line), one) for name, lines in extras if name != "dev" for line in lines
    }
    assert imported - set(sys.stdlib_module_names) - {"splatopt"} <= required | optional


def test_extras_that_are_not_for_developers_are_tested_by_them(project: dict):
    extras = project["optional-dependencies"]
    # Ray weighs more than all the rest, gsplat needs a GPU; their tests skip where they are not. pi-heif cannot write
    # what a test would have it read: a module of its name stands in.
    for name in extras.keys() - {"dev", "gsplat", "heic", "ray"}:
        assert set(extras[name]) <= set(extras["dev"]), f"the extra {name} is not installed where tests run"


def test_torch_is_pinned_without_a_build_tag(pins: dict[str, str]):
    assert pins["torch"] == "2.13.0"


def test_everything_pinned_is_an_exact_version(pins: dict[str, str]):
    assert {
        name for name, version in pins.items() if not re.fullmatch(r"[0-9]+(\.[0-9]+)*(\.post[0-9]+)?", version)
    } == set()
    assert {"cmake", "ninja", "nanobind", "scikit-build-core"} <= set(pins)


def test_data_files_and_type_marker_are_installed():
    assert (PACKAGE / "py.typed").is_file()
    assert "--accent" in (PACKAGE / "report" / "page.css").read_text()
    assert "--accent" in (PACKAGE / "bench" / "page.css").read_text()
    assert "use strict" in (PACKAGE / "bench" / "page.js").read_text()


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()
    assert {"core", "raster", "scene", "fields", "data", "metrics", "optim", "train"} <= {
        folder.name for folder in folders
    }


def test_the_command_points_at_a_function(project: dict):
    module, function = project["scripts"]["splatopt"].split(":")
    assert find_spec(module) is not None
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_licence_is_apache_2(project: dict):
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_room_has_its_page_of_theory():
    rooms = {"core", "kernels", "raster", "scene", "fields", "data", "metrics", "optim", "train", "bench"}
    assert rooms <= {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_import_contracts_name_every_room():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " ".join(contracts[0]["layers"])
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"cli"}
    assert {room for room in rooms if not re.search(rf"\b{room}\b", layers)} == set()
