"""Readers that others register: which is asked when, and what is said where one fails."""

from __future__ import annotations

import pytest

from splatopt.core.checks import InputError
from splatopt.core.plugins import Origin
from splatopt.data.capture import load_capture
from splatopt.data.readers import READERS, read_source, register_reader
from splatopt.data.source import Source
from splatopt.data.summary import inspect_capture
from train.toys import make_toy_capture


@pytest.fixture
def capture(tmp_path):
    return make_toy_capture(tmp_path / "toy")


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for name in READERS.names(Origin.GIVEN):
        READERS.forget(name)


def renamed(path) -> Source:
    found = READERS.find("colmap").read(path)
    return Source("mine", found.images, found.points, ("read by mine",))


def test_a_reader_that_is_given_comes_before_the_own(capture):
    assert read_source(capture).kind == "procedural"
    register_reader("mine", lambda path: path == capture, renamed)
    assert read_source(capture).kind == "mine"
    loaded = load_capture(capture)
    assert (loaded.kind, loaded.warnings) == ("mine", ("read by mine",))
    assert inspect_capture(capture).kind == "mine"


def test_one_that_does_not_recognise_a_folder_is_passed_over(capture, tmp_path):
    register_reader("mine", lambda path: False, renamed)
    assert read_source(capture).kind == "procedural"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no model found in .*metadata\.json, the reader mine; give a folder"):
        read_source(tmp_path / "empty")


def test_two_that_recognise_the_same_folder_are_refused(capture):
    for name in ("mine", "yours"):
        register_reader(name, lambda path: True, renamed)
    with pytest.raises(InputError, match="the readers mine and yours both recognise .*give the plug-in of one alone"):
        read_source(capture)


def fails(path):
    raise KeyError("poses")


@pytest.mark.parametrize(
    ("recognises", "read", "said"),
    [
        (
            fails,
            renamed,
            r"recognises\(\) of the reader 'mine' failed: .*test_plugin_readers\.py, line \d+: KeyError: 'poses'",
        ),
        (
            lambda path: True,
            fails,
            r"read\(\) of the reader 'mine' failed: .*test_plugin_readers\.py, line \d+: KeyError",
        ),
        (
            lambda path: True,
            lambda path: [],
            r"'mine' of .*test_plugin_readers\.py:\d+ must return a .*Source, got a list",
        ),
    ],
)
def test_a_reader_that_fails_is_one_sentence(capture, recognises, read, said):
    register_reader("mine", recognises, read)
    with pytest.raises(InputError, match=said):
        read_source(capture)


def test_its_own_errors_stay_as_they_are(capture):
    def refuse(path):
        raise InputError("row 3 has no pose")

    register_reader("mine", lambda path: True, refuse)
    with pytest.raises(InputError, match="^row 3 has no pose$"):
        read_source(capture)
