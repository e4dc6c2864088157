"""``--plugin`` on the command line: runs with plug-ins, runs whose plug-in is gone or changed, and what is refused."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from splatopt.cli import main
from splatopt.core import plugins
from splatopt.core.optimizer import OPTIMIZERS
from splatopt.core.plugins import Origin
from splatopt.data.readers import READERS
from splatopt.raster.loss_registry import LOSSES

ALL = """
from dataclasses import dataclass
from pathlib import Path

import splatopt
from splatopt.optim.first_order import Adam
from splatopt.data.readers import READERS
from splatopt.raster.torch_loss import weight_per_value


@dataclass(frozen=True)
class Rates:
    rate: float = 1e-3

    def rates(self, extent, progress):
        return {}

    beta1 = beta2 = 0.9
    epsilon = 1e-8
    quiet = True


class Walk(splatopt.Optimizer):
    needs = frozenset({splatopt.Oracle.GRADIENT})

    def step(self, batch, progress):
        evaluation = self.objective.gradient(batch)
        for name, parameter in self.objective.parameters.items():
            parameter -= self.options.rate * evaluation.gradient[name].sign()
        return evaluation


@dataclass(frozen=True)
class Power(splatopt.TorchLoss):
    power: float = 2.0

    def value(self, image, target, weights):
        return (weight_per_value(weights) * ((image - target).square() + 1e-6) ** (self.power / 2)).sum()


splatopt.register("walk", Walk, Rates, help="a step of one size")
splatopt.register_loss("power", Power, help="a power of the difference")
splatopt.register_reader(
    "hidden",
    lambda folder: (folder / "capture.hidden").is_file(),
    lambda folder: READERS.find("colmap").read(Path((folder / "capture.hidden").read_text())),
)
"""


@pytest.fixture(autouse=True)
def new_process():
    """Each command is a process of its own, as far as plug-ins go."""
    yield forget
    forget()


def forget() -> None:
    for registry in (OPTIMIZERS, LOSSES, READERS):
        for name in registry.names(Origin.GIVEN):
            registry.forget(name)
    plugins._files.clear()


def command(*words: object) -> int:
    forget()
    return main([str(word) for word in words])


@pytest.fixture
def plugin(tmp_path) -> Path:
    path = tmp_path / "plugin.py"
    path.write_text(textwrap.dedent(ALL))
    return path


@pytest.fixture
def trained(capture, plugin, tmp_path) -> Path:
    """A run with an optimizer and a loss of the plug-in, on a capture that only its reader knows."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "capture.hidden").write_text(str(capture))
    out = tmp_path / "run"
    words = ["--optimizer", "walk", "--walk.rate", "0.002", "--loss", "power", "--power.power", "1.5", "--steps", "4"]
    assert command("train", hidden, "--plugin", plugin, *words, "--out", out) == 0
    return out


def test_a_run_keeps_its_plugins_and_goes_on_with_them(trained, plugin, tmp_path, capsys):
    config = json.loads((trained / "config.json").read_text())
    assert config["optimizer_options"] == {"rate": 0.002}
    assert (config["loss"], config["loss_options"]) == ("power", {"power": 1.5})
    assert [one["path"] for one in config["plugins"]] == [str(plugin)]
    assert command("train", tmp_path / "hidden", "--out", trained, "--resume", "--steps", "6") == 0
    assert json.loads((trained / "config.json").read_text())["plugins"] == config["plugins"]
    assert "warning" not in capsys.readouterr().err


def test_a_run_that_is_looked_at_runs_no_file_that_it_names(trained, plugin, tmp_path, capsys):
    plugin.write_text("raise RuntimeError('was run')\n")
    assert command("export", trained, tmp_path / "scene.ply") == 0
    assert command("report", trained, "--views", "0") == 0
    page = (trained / "report.html").read_text()
    assert f"--plugin {plugin}" in page
    assert "--walk.rate 0.002" in page
    assert "--loss power" in page
    capsys.readouterr()
    for words in (["eval", trained], ["render", trained]):
        assert command(*words) == 2
        assert f"the run was made with a plug-in, add --plugin '{plugin}'" in capsys.readouterr().err


def test_what_needs_the_reader_is_given_it(trained, plugin, tmp_path):
    before = json.loads((trained / "eval.json").read_text())["psnr"]
    assert command("eval", trained, "--plugin", plugin) == 0
    assert json.loads((trained / "eval.json").read_text())["psnr"] == before
    assert command("report", trained, "--plugin", plugin, "--views", "1") == 0
    assert command("render", trained, "--plugin", plugin) == 0
    assert command("inspect", tmp_path / "hidden", "--plugin", plugin) == 0


def test_a_plugin_that_is_gone_is_asked_for(trained, plugin, tmp_path, capsys):
    moved = tmp_path / "elsewhere" / "plugin.py"
    moved.parent.mkdir()
    plugin.rename(moved)
    assert command("train", tmp_path / "hidden", "--out", trained, "--resume", "--steps", "6") == 2
    said = capsys.readouterr().err
    assert f"the run in {trained} was started with the plug-in {plugin}, which is no longer there; give it" in said
    assert len(said.strip().splitlines()) == 1
    resumed = ["train", tmp_path / "hidden", "--out", trained, "--resume", "--steps", "6", "--plugin", moved]
    assert command(*resumed) == 0
    assert [one["path"] for one in json.loads((trained / "config.json").read_text())["plugins"]] == [str(moved)]


def test_a_plugin_that_has_changed_is_told(trained, plugin, tmp_path, capsys):
    plugin.write_text(plugin.read_text() + "\n# another\n")
    assert command("train", tmp_path / "hidden", "--out", trained, "--resume", "--steps", "6") == 0
    said = capsys.readouterr()
    assert f"the plug-in {plugin} has changed since the run in {trained} was started" in said.out + said.err


def test_a_plugin_that_no_longer_has_the_optimizer(trained, plugin, tmp_path, capsys):
    plugin.write_text("")
    assert command("train", tmp_path / "hidden", "--out", trained, "--resume", "--steps", "6") == 2
    assert "no optimizer is named 'walk'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "fit", "inspect", "bench"])
def test_a_plugin_that_fails_is_one_sentence(capture, tmp_path, name, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ny = = 2\n")
    words = ["--scenes", capture, "--optimizers", "adam"] if name == "bench" else [capture]
    assert command(name, *words, "--plugin", broken) == 2
    said = capsys.readouterr().err.strip()
    assert f"{broken}, line 2: SyntaxError: invalid syntax; mend it" in said
    assert len(said.splitlines()) == 1
    assert command(name, *words, "--plugin", tmp_path / "none.py") == 2
    assert "none.py is not there; give a Python file with --plugin" in capsys.readouterr().err


def test_help_shows_what_a_plugin_brings(plugin, capsys):
    assert command("train", "--plugin", plugin, "--optimizer", "walk", "--loss", "power", "--help") == 0
    shown = capsys.readouterr().out
    assert "--walk.rate" in shown
    assert "--power.power" in shown
    assert "walk: a step of one size" in shown
    assert "power: a power of the difference" in shown
    assert command("fit", f"--plugin={plugin}", "--help-all") == 0
    assert "--walk.rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loss", "charbonier"], "no loss is named 'charbonier'; did you mean charbonnier?"),
        (["--charbonnier.epsilon", "0.1"], "options of 'charbonnier' are given, but the loss is 'l1-ssim'; add --loss"),
        (["--loss", "charbonnier", "--charbonnier.epsilon", "-1"], "epsilon must be a positive number, got -1"),
        (["--loss", "squared", "--ssim-weight", "0.5"], "--ssim-weight 0.5 is the share of SSIM in the loss l1-ssim"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(capture, words, said, tmp_path, capsys):
    assert command("train", capture, *words, "--out", tmp_path / "run") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_own_losses_are_chosen_by_name_and_stay(capture, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--loss", "charbonnier", "--charbonnier.epsilon", "0.1", "--steps", "2", "--out", out]
    assert command("train", capture, *words) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["loss_options"] == {"epsilon": 0.1, "ssim_weight": 0.2, "floor_dissimilarity": 1e-3}
    assert command("train", capture, "--out", out, "--resume", "--steps", "3") == 0
    capsys.readouterr()
    resumed = ["train", capture, "--out", out, "--resume", "--steps", "4"]
    assert command(*resumed, "--loss", "squared") == 2
    assert "was started with --loss charbonnier, and cannot go on with squared" in capsys.readouterr().err
    assert command(*resumed, "--loss", "charbonnier", "--charbonnier.epsilon", "0.2") == 2
    assert "was started with --charbonnier.epsilon 0.1, and cannot go on with 0.2" in capsys.readouterr().err


def test_a_suite_refuses_a_worker_whose_plugin_has_changed(capture, plugin, tmp_path, capsys):
    out = tmp_path / "bench"
    words = ["bench", "--scenes", capture, "--optimizers", "walk", "--steps", "2", "--out", out, "--threads", "1"]
    assert command(*words, "--plugin", plugin) == 0
    (cell,) = json.loads((out / "results.json").read_text())["cells"]
    assert [one["file"] for one in cell["config"]["plugins"]] == ["plugin.py"]
    request = next((out / "state").glob("*.json"))
    plugin.write_text(plugin.read_text() + "# another\n")
    from splatopt.bench.worker import FAILED
    from splatopt.bench.worker import main as work

    forget()
    assert work(request) == FAILED
    reason = json.loads(request.with_suffix(".failed").read_text())["reason"]
    assert f"the plug-in {plugin} has changed since the suite was started" in reason
    capsys.readouterr()
    assert command(*words, "--plugin", plugin) == 2
    assert "was run with plugins = [{'file': 'plugin.py', 'sha256': " in capsys.readouterr().err


@pytest.fixture
def installed(tmp_path, monkeypatch) -> str:
    """An installed package that offers an optimizer, a loss and a reader, and another that is broken."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "offering_package.py").write_text(textwrap.dedent(ALL))
    (site / "broken_package.py").write_text("raise RuntimeError('broken')\n")
    groups = {"optimizers": "walk", "losses": "power", "readers": "hidden"}
    for package, names in (("offering_package", groups), ("broken_package", dict.fromkeys(groups, "shattered"))):
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"[splatopt.{group}]\n{name} = {package}\n" for group, name in names.items()]
        (metadata / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(site))
    yield "offering_package"
    for registry in (OPTIMIZERS, LOSSES, READERS):
        for name in registry.names(Origin.INSTALLED):
            registry.forget(name)
    for package in ("offering_package", "broken_package"):
        sys.modules.pop(package, None)


def test_what_packages_offer_is_found_by_its_name(capture, installed, tmp_path, capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"- walk: of the package {installed}" in shown
    assert "shattered: of the package broken_package" in shown
    assert installed not in sys.modules
    words = ["--optimizer", "walk", "--walk.rate", "0.002", "--loss", "power", "--power.power", "1.5", "--steps", "2"]
    out = tmp_path / "run"
    assert main(["train", str(capture), *words, "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["optimizer_options"], config["loss_options"]) == ({"rate": 0.002}, {"power": 1.5})
    assert config["plugins"] == []
    assert main(["train", str(capture), "--out", str(out), "--resume", "--steps", "3"]) == 0


def test_a_broken_package_is_said_where_it_is_asked_for(capture, installed, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", str(capture), "--steps", "1", "--out", out]) == 0
    for words in (["--optimizer", "shattered"], ["--loss", "shattered"]):
        assert main(["train", str(capture), *words, "--out", out]) == 2
        said = capsys.readouterr().err
        assert "'shattered' of the package broken_package cannot be loaded" in said
        assert "broken_package.py, line 1: RuntimeError: broken" in said


def test_a_packages_reader_is_asked_last_and_a_broken_one_is_named(capture, installed, tmp_path, capsys):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    assert main(["inspect", str(hidden)]) == 2
    assert "the reader 'shattered' of the package broken_package cannot be loaded" in capsys.readouterr().err
    (hidden / "capture.hidden").write_text(str(capture))
    assert main(["inspect", str(hidden)]) == 0
