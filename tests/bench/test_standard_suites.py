"""The suites of the literature's data sets: their protocols, and what is said where the data set is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from data.capture_cases import HEIGHT, WIDTH, write_colmap
from splatopt.bench.cells import make_cells
from splatopt.bench.runner import check_scenes
from splatopt.bench.suite import read_suite
from splatopt.cli import main
from splatopt.core.checks import InputError

SUITES = Path(__file__).resolve().parents[2] / "suites"

OUTDOORS = ("bicycle", "flowers", "garden", "stump", "treehill")
INDOORS = ("room", "counter", "kitchen", "bonsai")
PHOTOGRAPHS = {
    "mip-nerf-360": {**dict.fromkeys(OUTDOORS, "images_4"), **dict.fromkeys(INDOORS, "images_2")},
    "llff": dict.fromkeys(("fern", "flower", "fortress", "horns", "leaves", "orchids", "room", "trex"), "images_4"),
    "nerf-synthetic": dict.fromkeys(("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship")),
    "tanks-and-temples": dict.fromkeys(("train", "truck")),
}


def stand_in(folder: Path, name: str) -> Path:
    """A small capture under the name of a scene, with the smaller copies of its photographs."""
    write_colmap(folder / name)
    for factor in (2, 4):
        copies = folder / name / f"images_{factor}"
        copies.mkdir()
        for file in (folder / name / "images").iterdir():
            Image.open(file).resize((WIDTH // factor, HEIGHT // factor)).save(copies / file.name)
    return folder / name


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_suite_has_the_protocol_of_the_literature(tmp_path, name):
    suite = read_suite(SUITES / f"{name}.toml")
    assert {scene.name: scene.settings.get("images") for scene in suite.scenes} == PHOTOGRAPHS[name]
    for scene in suite.scenes:
        (tmp_path / scene.path).mkdir()
    cells = make_cells(suite, Path("out"), {}, tmp_path)
    assert {7000, 30_000} <= set(cells[0].config.scoring.eval_at)
    assert {"adam + adc", "adam + mcmc", "adam", "block-gn + mcmc", "learned + gain"} <= {cell.label for cell in cells}
    for cell in cells:
        assert cell.config.schedule.total_steps == 30_000
        assert (cell.config.data.test_every, cell.config.data.downscale, cell.config.data.max_side) == (8, 1, None)
        white = name == "nerf-synthetic"
        assert cell.config.scene.background == ((1.0, 1.0, 1.0) if white else (0.0, 0.0, 0.0))
        assert (cell.config.scene.init, cell.config.scene.random_points) == (
            ("random", 100_000) if white else ("sfm", 20_000)
        )


def test_the_published_numbers_of_a_suite_are_of_its_scenes():
    for name, scenes in PHOTOGRAPHS.items():
        suite = read_suite(SUITES / f"{name}.toml")
        assert suite.published[0].key == name
        assert set(suite.published[0].scenes) == set(scenes)
        assert all(set(one.scenes) <= set(scenes) for one in suite.published)


def test_a_data_set_that_is_not_there_is_one_sentence_that_names_the_folder(tmp_path, capsys):
    words = ["bench", str(SUITES / "tanks-and-temples.toml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--data", str(tmp_path / "tandt")]) == 2
    assert f"there is no folder {tmp_path / 'tandt'}" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "tandt" / "train").mkdir(parents=True)
    assert main([*words, "--data", str(tmp_path / "tandt")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"scene 'truck' is not at {tmp_path / 'tandt' / 'truck'}; give the folder that holds the scenes" in error
    assert not (tmp_path / "out").exists()


def test_photographs_that_are_not_there_are_named_before_anything_runs(tmp_path):
    suite = read_suite(SUITES / "mip-nerf-360.toml").only(["garden", "room"])
    for scene in suite.scenes:
        stand_in(tmp_path, scene.path)
    cells = make_cells(suite, Path("out"), {}, tmp_path)
    check_scenes(cells)
    for file in (tmp_path / "room" / "images_2").iterdir():
        file.unlink()
    (tmp_path / "room" / "images_2").rmdir()
    with pytest.raises(InputError, match="room has no folder 'images_2' .* there are images, images_4"):
        check_scenes(cells)
