"""The picture of the rooms is the one that the source gives, and shows what it says."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from benchmarks import architecture
from benchmarks.architecture import PICTURE, Edge, House, draw, main, read_house
from benchmarks.imports import floors

LINES = [["train"], ["scene", "optim"], ["raster"], ["core"]]


@pytest.fixture(scope="module")
def house() -> House:
    """What the source gives."""
    return read_house()


def test_the_committed_picture_is_current(house, monkeypatch, capsys):
    monkeypatch.setattr(architecture, "read_house", lambda: house)
    assert main(["--check"]) == 0, "python -m benchmarks.architecture draws it anew"
    assert capsys.readouterr().out == "docs/architecture.svg is current\n"


def test_rooms_stand_in_the_order_of_the_contracts(house):
    order = [room for line in floors() for room in line]
    assert house.rooms == [room for room in order if room in house.rooms]
    assert {"commands", "train", "fit", "scene", "raster", "core"} <= set(house.rooms)
    places = [PICTURE.read_text().index(f'class="name middle" x="480" y="{20 + 86 * row + 19}"') for row in (0, 1)]
    assert places == sorted(places)


def test_arrows_are_those_without_a_longer_way():
    edges = {
        ("train", "scene"): Edge(3, 0),
        ("train", "raster"): Edge(2, 1),
        ("train", "core"): Edge(9, 0),
        ("scene", "raster"): Edge(1, 1),
        ("optim", "core"): Edge(4, 0),
        ("core", "optim"): Edge(1, 1),
    }
    house = House(LINES, edges)
    assert house.shown() == [("train", "scene"), ("scene", "raster"), ("core", "optim")]
    root = ElementTree.fromstring(draw(house))
    texts = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert texts.count("1+1") == 1  # train to raster: in the table, not as an arrow
    assert texts.count("0+1") == 4  # two arrows, two cells
    assert texts[-1] == "20 imports between rooms, 3 of them deferred, 1 not downward."
    ways = [one.get("class") for one in root.iter() if (one.get("class") or "").startswith("way")]
    assert ways == ["way", "way deferred", "way up deferred"]


def test_the_picture_can_be_read_in_light_and_dark():
    picture = PICTURE.read_text()
    assert "prefers-color-scheme: dark" in picture
    assert ElementTree.fromstring(picture).get("aria-label")
