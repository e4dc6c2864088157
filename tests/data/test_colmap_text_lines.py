"""COLMAP's text files: every line is read, or refused; none is skipped for what it might be."""

from __future__ import annotations

from pathlib import Path

import pytest
from capture_cases import write_colmap

from splatopt.core.checks import InputError
from splatopt.data import Capture, load_capture
from splatopt.data.colmap_files import model_in

POSE = "1 0 0 0 0.5 0 4"


def images_text(path: Path, *lines: str) -> list[str]:
    """Write an images.txt beside a camera of number 1; return the names that are read from it."""
    write_colmap(path, binary=False)
    folder = path / "sparse" / "0"
    (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = model_in(folder)
    assert model is not None
    assert model.count() == len(model.images([1], []))
    return [image.name for image in model.images([1], [])]


def image(number: int, name: str) -> str:
    return f"{number} {POSE} 1 {name}"


@pytest.mark.parametrize(
    "lines",
    [
        [image(1, "a.png"), image(2, "b.png"), image(3, "c.png")],
        [image(1, "a.png"), "", image(2, "b.png"), "", image(3, "c.png"), ""],
        [image(1, "a.png"), "1 2 -1 3.5 4 7", image(2, "b.png"), "1 2 3", image(3, "c.png"), ""],
        # A mixture, with comments and blank lines anywhere.
        [image(1, "a.png"), "", "", "# a comment", image(2, "b.png"), image(3, "c.png"), "1 2 -1.0"],
        [image(1, "a.png"), "# between", "1 2 3", image(2, "b.png"), "   ", image(3, "c.png"), "nan inf -1"],
    ],
)
def test_lines_of_points_may_be_absent(tmp_path: Path, lines: list[str]) -> None:
    assert images_text(tmp_path, *lines) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("points", [[""], ["5 6 -1 7 8 9 1 2 3 4 5 6"], []])
@pytest.mark.parametrize(
    "names", [["1", "2"], ["0001", "0002.5"], ["1 2", "3 4"], ["1e5", "nan"], ["a b c.png", "1 2 3.png"]]
)
def test_names_of_numbers_and_spaces(tmp_path: Path, names: list[str], points: list[str]) -> None:
    lines = [line for number, name in enumerate(names, 1) for line in (image(number, name), *points)]
    assert images_text(tmp_path, *lines) == names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([image(1, "a.png"), image(2, "1 2 3")], "can be an image or the 2D points of the image before"),
        ([image(1, "a.png"), "1 2 -1 3 4"], "expected 2D points of three numbers each or 10 words"),
        ([image(1, "a.png"), "1 2 -1 3 4 -1 5 6 -1 7"], "expected 2D points of three numbers each or 10 words"),
        ([image(1, "a.png"), "1 2 -1 3 four -1"], "expected 10 words about an image, got '1 2 -1 3 four -1'"),
        ([image(1, "a.png"), "1 2 3", "1 2 3"], "expected 10 words about an image, got '1 2 3'"),
        (["1 2 3", image(1, "a.png")], "expected 10 words about an image, got '1 2 3'"),
    ],
)
def test_a_line_that_is_neither_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        images_text(tmp_path, *lines)


def test_a_name_of_three_numbers_is_known_by_its_place(tmp_path: Path) -> None:
    names = ["1 2 3", "4 5 6"]
    assert images_text(tmp_path, image(1, names[0]), "", image(2, names[1]), "1 2 3") == names


def test_the_larger_of_two_models_is_told_without_lines_of_points(tmp_path: Path) -> None:
    capture = write_without_point_lines(tmp_path, 12)
    assert len(capture.cameras) == 12
    assert "used sparse/1 with 12 images and not sparse/0 (9)" in capture.warnings[0]


def write_without_point_lines(path: Path, views: int) -> Capture:
    write_colmap(path / "larger", binary=False, views=views)
    write_colmap(path, binary=False)
    (path / "larger" / "sparse" / "0").rename(path / "sparse" / "1")
    for image_file in (path / "larger" / "images").iterdir():
        image_file.replace(path / "images" / image_file.name)
    text = path / "sparse" / "1" / "images.txt"
    text.write_text("\n".join(line for line in text.read_text().split("\n") if line.endswith(".png")))
    return load_capture(path)


def test_a_file_that_ends_before_what_it_says_it_holds(tmp_path: Path) -> None:
    write_colmap(tmp_path, binary=False)
    for name, what, ending in (("images", "images", 2), ("points3D", "points", 1)):
        file = tmp_path / "sparse" / "0" / f"{name}.txt"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-ending]))
        assert any(f"{what}, and holds" in warning for warning in load_capture(tmp_path).warnings)
    assert (
        load_capture(tmp_path)
        .warnings[0]
        .endswith("says that it holds 9 images, and holds 8; it may have been cut short")
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0 0 0 1 2 3 0.5 7", "expected two numbers about each view of a point"),
        ("1 0 0 0 1 2 3 0.5 7 a", "expected numbers"),
        ("one 0 0 0 1 2 3 0.5", "expected numbers"),
        ("1 0 0 0 1 2 3 wrong", "expected numbers"),
    ],
)
def test_all_words_about_a_point_are_looked_at(tmp_path: Path, line: str, message: str) -> None:
    write_colmap(tmp_path, binary=False)
    (tmp_path / "sparse" / "0" / "points3D.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("colors", "expected"),
    [(("0 1 255", "10 20 30"), [[0, 1, 255], [10, 20, 30]]), (("0.5 0 1", "1 1 1"), [[128, 0, 255], [255, 255, 255]])],
)
def test_colours_in_words(tmp_path: Path, colors: tuple[str, ...], expected: list[list[int]]) -> None:
    write_colmap(tmp_path, binary=False)
    lines = [f"{number} 0 0 0 {color} 0.1 1 0 2 5\n" for number, color in enumerate(colors)]
    (tmp_path / "sparse" / "0" / "points3D.txt").write_text("".join(lines))
    capture = load_capture(tmp_path)
    assert capture.points is not None
    assert capture.points.colors.tolist() == expected
    assert any("are fractions" in warning for warning in capture.warnings) == ("0.5" in colors[0])


def test_text_that_is_not_what_its_mark_says(tmp_path: Path) -> None:
    write_colmap(tmp_path, binary=False)
    file = tmp_path / "sparse" / "0" / "cameras.txt"
    file.write_bytes(b"\xff\xfe" + file.read_text().encode("utf-16-le") + b"\n")
    with pytest.raises(InputError, match=r"cameras.txt cannot be read: it is not the UTF-16 text that it begins as"):
        load_capture(tmp_path)


def test_a_number_of_thousands_of_digits_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_colmap(tmp_path, binary=False)
    file = tmp_path / "sparse" / "0" / "images.txt"
    file.write_text(f"1 1 0 0 0 0 0 0 1 image_000.png\n2 1 0 0 0 0 0 0 {'9' * 5000} 7\n")
    with pytest.raises(InputError, match=r"expected numbers, got '2 9999") as raised:
        load_capture(tmp_path)
    assert len(str(raised.value)) < 500
