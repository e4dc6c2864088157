"""What a suite's file may say, and what is answered to what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cases import toy_suite
from splatopt.bench.cells import Cell, cell_name, make_cells, make_timing_cells, timed
from splatopt.bench.protocol import POINTS, PROTOCOLS
from splatopt.bench.suite import make_suite, read_suite
from splatopt.core.checks import InputError
from splatopt.core.plugins import Origin
from splatopt.density.strategy import STRATEGIES
from splatopt.optim import AdamOptions
from splatopt.raster.types import Footprint
from splatopt.train.recipe import RECIPES
from splatopt.train.sampler import ViewChoice
from train.density_runs import plugins_forgotten

SUITES = Path(__file__).resolve().parents[2] / "suites"


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.toml"
    path.write_text(text)
    return path


MINIMAL = '[[scenes]]\npath = "fox"\n[[optimizers]]\nname = "adam"\n'


def test_the_least_that_a_suite_says(tmp_path):
    suite = read_suite(write(tmp_path, MINIMAL))
    assert suite.title == "suite"
    assert suite.protocol.name == "dense"
    assert suite.points == POINTS
    assert suite.seeds == (0,)
    assert suite.reference == "adam"
    assert [scene.name for scene in suite.scenes] == ["fox"]
    assert [setting.name for setting in suite.settings] == [""]


def test_the_matrix_is_scenes_by_settings_by_optimizers_by_seeds(capture):
    settings = [{"name": "small", "max_side": 16}, {"name": "whole"}]
    suite = toy_suite(capture, settings=settings, seeds=[3, 5])
    cells = make_cells(suite, Path("out"), {})
    assert len(cells) == 1 * 2 * 2 * 2
    assert [cell.name for cell in cells[:3]] == ["toy.small.adam.seed3", "toy.small.slow.seed3", "toy.whole.adam.seed3"]
    assert [cell.seed for cell in cells] == [3] * 4 + [5] * 4
    assert {cell.config.data.max_side for cell in cells} == {16, None}
    assert cells[0].config.folder == Path("out/cells/toy.small.adam.seed3")


def test_the_more_special_setting_wins(capture):
    suite = toy_suite(
        capture,
        train={"steps": 10, "view_batch": 2, "sh_degree": 1, "footprint": "antialiased"},
        scenes=[{"path": str(capture), "steps": 20, "view_batch": 3}],
        settings=[{"name": "s", "steps": 30, "view_choice": "farthest"}],
        optimizers=[{"name": "adam", "steps": 40, "options": {"means_rate": 1}}],
    )
    config = make_cells(suite, Path("out"), {"threads": 1})[0].config
    assert (config.schedule.steps, config.schedule.view_batch, config.scene.sh_degree, config.processes.threads) == (
        40,
        3,
        1,
        1,
    )
    assert (config.schedule.view_choice, config.scene.footprint) == (ViewChoice.FARTHEST, Footprint.ANTIALIASED)
    assert config.schedule.optimizer_options == AdamOptions(means_rate=1.0)
    assert isinstance(config.schedule.optimizer_options.means_rate, float)


def test_sparse_goes_through_its_numbers_of_views(capture):
    cells = make_cells(toy_suite(capture, protocol="sparse", seeds=1), Path("out"), {})
    assert [(cell.setting, cell.config.data.input_views) for cell in cells[::2]] == [
        ("3 views", 3),
        ("6 views", 6),
        ("8 views", 8),
    ]
    own = toy_suite(capture, protocol="sparse", inputs=[2], settings=[{"name": "tiny", "max_side": 16}])
    assert [setting.name for setting in own.settings] == ["2 views, tiny"]


def test_long_goes_past_the_horizon(capture):
    suite = toy_suite(capture, protocol="long", train={})
    config = make_cells(suite, Path("out"), {})[0].config
    assert (config.schedule.steps, config.schedule.horizon) == (30_000, 7000)


def test_fixed_time_has_a_clock_for_each_scene(capture):
    suite = toy_suite(capture, protocol="fixed-time", train={}, optimizers=[{"name": "tr2", "steps": 50}])
    (clock,) = make_timing_cells(suite, Path("out"), {}).values()
    assert (clock.config.schedule.optimizer, clock.config.schedule.steps, clock.config.schedule.horizon) == (
        "adam",
        4000,
        None,
    )
    assert (clock.config.schedule.view_batch, clock.config.schedule.view_choice) == (8, ViewChoice.FARTHEST)
    assert clock.config.folder == Path("out/times/toy.time-of-adam.seed0")
    cell = make_cells(suite, Path("out"), {})[0]
    with_time = timed(cell, 8.0)
    assert with_time.config.schedule.max_seconds == 8.0
    assert with_time.config.schedule.steps == 50
    assert len(with_time.config.scoring.eval_at_seconds) == 39
    assert max(with_time.config.scoring.eval_at_seconds) < 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('optimizer = "adam"\n' + MINIMAL, "there is no entry 'optimizer'; did you mean optimizers"),
        (MINIMAL.replace("adam", "adm"), "optimizers 1: no optimizer is named 'adm'; did you mean adam"),
        (MINIMAL + "options = {mean_rate = 1}", "there is no option of adam 'mean_rate'; did you mean means_rate"),
        (MINIMAL + "options = {means_rate = 'x'}", "means_rate must be a number, got 'x'"),
        (MINIMAL + "options = {means_rate = -1}", "means_rate must"),
        (MINIMAL + "step = 5", r"optimizers 1 \(adam\): there is no setting 'step'; did you mean steps"),
        (MINIMAL + "steps = 1.5", "steps must be a whole number, got 1.5"),
        (MINIMAL + "steps = true", "steps must be a whole number, got True"),
        (MINIMAL + "background = [1, 1]", "background must hold 3 values, got 2"),
        (MINIMAL + "view_choice = 'far'", "view_choice must be shuffled or farthest, got 'far'"),
        (MINIMAL + "eval_at = [3]", "there is no setting 'eval_at'"),
        (MINIMAL + "test_every = 4", "test_every is fixed by the protocol dense"),
        (MINIMAL + MINIMAL.split("[[o", maxsplit=1)[0], "the scene 'fox' stands there twice"),
        (MINIMAL + "[[optimizers]]\nname = 'adam'", "the label 'adam' stands there twice"),
        (MINIMAL + "[[optimizers]]\nlabel = 'x'", "optimizers 2: name is missing"),
        ('[[optimizers]]\nname = "adam"', r"\[\[scenes\]\] must be given at least once"),
        ('[[scenes]]\npath = "fox"', r"\[\[optimizers\]\] must be given at least once"),
        ("scenes = ['fox']\n[[optimizers]]\nname = 'adam'", "scenes 1 must be a table, got 'fox'"),
        ("protocol = 'dence'\n" + MINIMAL, "there is no protocol 'dence'; did you mean dense"),
        ("inputs = [3]\n" + MINIMAL, "inputs belongs to the protocol sparse"),
        ("protocol = 'sparse'\ninputs = [0]\n" + MINIMAL, "inputs must be different numbers of at least 1"),
        ("seeds = 0\n" + MINIMAL, "seeds must be a number from 1"),
        ("seeds = [1, 1]\n" + MINIMAL, "the seed 1 stands there twice"),
        ("seeds = [-1]\n" + MINIMAL, "seeds must be"),
        ("points = [-5]\n" + MINIMAL, "points must be at least 0"),
        ("seconds = [nan]\n" + MINIMAL, "seconds must be"),
        ("reference = 'tr'\n" + MINIMAL, "there is no optimizer entry labelled 'tr'"),
        ("[train]\nmax_seconds = 3\n" + MINIMAL, "there is no setting 'max_seconds'"),
        ("[[settings]]\nsteps = 3\n" + MINIMAL, "settings 1: name is missing"),
        ("title = 3\n" + MINIMAL, "title must be a text, got 3"),
        ("= 3", "is not a suite in TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=said) as raised:
        read_suite(path)
    assert str(raised.value).startswith(str(path))


def test_a_suite_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.toml cannot be read"):
        read_suite(tmp_path / "nothing.toml")


def test_a_scene_is_looked_for_from_the_suite_then_from_here_or_in_the_data(tmp_path, capture, monkeypatch):
    suite = read_suite(write(tmp_path, MINIMAL.replace("fox", "../shared/toy")))
    with pytest.raises(InputError, match="scene 'toy' is not at .*toy and .*toy; give the folder .* with --data"):
        make_cells(suite, Path("out"), {})
    found = make_cells(suite, Path("out"), {}, capture.parent)[0].config.data.capture
    assert Path(found) == capture
    monkeypatch.chdir(capture)
    here = read_suite(write(tmp_path, MINIMAL.replace("fox", "../toy")))
    assert make_cells(here, Path("out"), {})[0].config.data.capture == "../toy"


def test_two_cells_never_share_a_folder(capture):
    entries = [{"name": "adam", "label": "a b"}, {"name": "adam", "label": "A-b"}]
    with pytest.raises(InputError, match="would share the folder"):
        make_cells(toy_suite(capture, optimizers=entries), Path("out"), {})


@pytest.mark.parametrize("label", ["../../etc", "<script>", "…", "a" * 500, "."])
def test_a_folders_name_is_harmless_whatever_the_label(label):
    name = cell_name("scene", "", label, 0)
    assert Path(name).name == name
    assert len(name) < 100
    assert name.isascii()


def test_a_setting_that_no_run_can_have_names_its_cell(capture):
    suite = toy_suite(capture, optimizers=[{"name": "adam", "label": "none", "steps": 0}])
    with pytest.raises(InputError, match=r"scene 'toy', optimizer 'none': --steps must be at least 1"):
        make_cells(suite, Path("out"), {})


STANDARD = ("llff", "mip-nerf-360", "nerf-synthetic", "tanks-and-temples")
"""Suites of data sets that everyone brings."""
SYNTHETIC = ("density-scores", "recipes")
"""Suites of scenes that `splatopt data make` renders."""


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(SUITES.glob("*.toml")) if path.stem not in STANDARD + SYNTHETIC],
    ids=lambda path: path.stem,
)
def test_every_suite_of_the_repository_can_be_run(path, data_folder):
    suite = read_suite(path)
    assert len(make_cells(suite, Path("out"), {}, data_folder)) >= 6
    assert suite.title != path.stem


def test_the_repository_has_a_suite_for_every_protocol():
    with plugins_forgotten():
        assert {read_suite(path).protocol.name for path in SUITES.glob("*.toml")} == set(PROTOCOLS)
    assert {"quick", "dense", "sparse", "long", "second-order"} <= {path.stem for path in SUITES.glob("*.toml")}


def test_a_suite_says_nothing_of_its_machine(tmp_path):
    values = {"scenes": [{"path": "fox"}], "optimizers": [{"name": "adam"}]}
    assert str(tmp_path) not in str(make_suite(values, "x", tmp_path, "t").to_json())


def test_scenes_can_be_chosen(tmp_path, capture):
    scenes = [{"path": str(capture), "name": name} for name in ("one", "two", "three")]
    suite = toy_suite(capture, scenes=scenes)
    assert suite.only(()) == suite
    assert [scene.name for scene in suite.only(["three", "one"]).scenes] == ["one", "three"]
    with pytest.raises(InputError, match="--only of the suite 'Toy suite': there is no scene 'tow'; did you mean two"):
        suite.only(["tow"])


def test_a_folder_of_scenes_that_is_not_there_is_named(tmp_path, capture):
    with pytest.raises(InputError, match=f"there is no folder {tmp_path}/nowhere; --data names the one that holds"):
        make_cells(toy_suite(capture), Path("out"), {}, tmp_path / "nowhere")


# ---------------------------------------------------------------------- density strategies


def test_every_optimizer_goes_through_every_density_strategy(capture):
    optimizers = [{"name": "adam"}, {"name": "tr2", "label": "second", "steps": 7}]
    scenes = [{"path": str(capture), "name": "toy", "max_gaussians": 500}]
    densities = ["none", "mcmc", {"name": "adc", "label": "adc, late", "options": {"start": 9}, "steps": 11}]
    suite = toy_suite(capture, scenes=scenes, optimizers=optimizers, densities=densities, reference="adam + mcmc")
    labels = ["adam", "adam + mcmc", "adam + adc, late", "second", "second + mcmc", "second + adc, late"]
    assert [entry.label for entry in suite.optimizers] == labels
    cells = {cell.label: cell.config for cell in make_cells(suite, Path("out"), {}) if cell.seed == 0}
    asked = {label: (one.density.density, one.density.max_gaussians) for label, one in cells.items()}
    assert asked == dict(zip(labels, [("none", None), ("mcmc", 500), ("adc", 500)] * 2, strict=True))
    assert cells["adam + adc, late"].density.density_options.start == 9
    assert cells["second + mcmc"].schedule.steps == 7
    assert cells["second + adc, late"].schedule.steps == 11
    assert cells["second + mcmc"].schedule.optimizer == "tr2"


def test_an_entry_with_a_density_strategy_of_its_own_is_labelled_with_it(capture):
    entries = [{"name": "adam"}, {"name": "adam", "density": "mcmc"}, {"name": "adam", "density": "adc", "label": "x"}]
    suite = toy_suite(capture, optimizers=entries)
    assert [entry.label for entry in suite.optimizers] == ["adam", "adam + mcmc", "x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("densities = 'mcmc'\n" + MINIMAL, "densities must be a list of density strategies, got 'mcmc'"),
        ("densities = ['mcmcm']\n" + MINIMAL, "densities 1: no density strategy is named 'mcmcm'; did you mean mcmc"),
        ("densities = [{label = 'x'}]\n" + MINIMAL, "densities 1: name is missing"),
        ("densities = ['none', 3]\n" + MINIMAL, "densities 2 must be a table, got 3"),
        ("densities = ['mcmc', 'mcmc']\n" + MINIMAL, r"the label 'adam \+ mcmc' stands there twice"),
        (
            "densities = [{name = 'adc', options = {untl = 3}}]\n" + MINIMAL,
            "densities 1: there is no option of adc 'untl'; did you mean until",
        ),
        ("densities = [{name = 'adc', options = {every = 0}}]\n" + MINIMAL, r"densities 1 \(adc\): every must be"),
        ("densities = [{name = 'none', options = {every = 1}}]\n" + MINIMAL, "none is no strategy and has no options"),
        ("densities = ['adc']\n" + MINIMAL + "density = 'mcmc'", "adam . mcmc names a density strategy, and densities"),
    ],
)
def test_a_mistake_in_densities_is_named(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_suite(write(tmp_path, text))


def test_the_suite_of_densities_has_the_bounds_of_its_scenes(data_folder):
    cells = make_cells(read_suite(SUITES / "density.toml"), Path("out"), {}, data_folder)
    strategies = {cell.config.density.density for cell in cells}
    assert strategies == {"none", "adc", "mcmc", "gain"}
    assert len(cells) == 6 * 5 * 3 * len(strategies)
    bounds = {"fox": 40_000, "fern": 60_000, "lego_200": 150_000, "lego_800": 150_000, "toy": 60_000, "castle": 20_000}
    for cell in cells:
        grows = cell.config.density.density != "none"
        assert cell.config.density.max_gaussians == (bounds[cell.scene] if grows else None)
        assert ("+" in cell.label) == grows
        if cell.config.schedule.optimizer == "learned":
            assert (cell.config.schedule.steps, cell.config.schedule.view_batch) == (4000, 1)


def test_the_suite_of_recipes_goes_through_minutes(tmp_path):
    for name in ("scene-0000", "scene-0003", "fern"):
        (tmp_path / name).mkdir()
    suite = read_suite(SUITES / "recipes.toml")
    cells = make_cells(suite, Path("out"), {}, tmp_path)
    assert len(cells) == 3 * 4 * len(RECIPES)
    assert {cell.config.schedule.recipe for cell in cells} == set(RECIPES)
    assert {cell.config.schedule.minutes for cell in cells} == {0.5, 2.0, 5.0, 15.0}
    assert {cell.config.schedule.view_batch for cell in cells} == {None}  # the recipe's
    for cell in cells[:3]:
        assert Cell.from_json(json.loads(json.dumps(cell.to_json())), "a cell").config == cell.config
    with pytest.raises(InputError, match="recipes are of the protocol minutes, and the suite's is dense"):
        make_suite({"scenes": [{"path": "fox"}], "optimizers": [{"recipe": "default"}]}, "x", tmp_path, "t")
    with pytest.raises(InputError, match="there is no recipe 'defualt'; did you mean default"):
        values = {"protocol": "minutes", "scenes": [{"path": "fox"}], "optimizers": [{"recipe": "defualt"}]}
        make_suite(values, "x", tmp_path, "t")


def test_the_suite_of_scores_loads_its_plugin_and_compares_at_equal_numbers(tmp_path):
    for name in ("scene-0001", "scene-0002"):
        (tmp_path / name).mkdir()
    with plugins_forgotten():
        suite = read_suite(SUITES / "density-scores.toml")
        cells = make_cells(suite, Path("out"), {}, tmp_path)
        given = set(STRATEGIES.names(Origin.GIVEN))
        strategies = {cell.config.density.density for cell in cells}
    assert strategies == {"gain", *given}
    assert len(given) == 8
    assert len(cells) == 2 * 2 * 9 * 3
    for cell in cells:
        config = cell.config
        assert (config.schedule.steps, config.schedule.view_batch, config.data.downscale) == (1500, 1, 2)
        assert config.density.max_gaussians == 8000
        assert config.schedule.optimizer in ("block-gn", "learned")
