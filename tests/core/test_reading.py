"""Files of a run are read as data: regular, bounded, and of one form."""

from __future__ import annotations

import json
import os
import struct

import pytest
import safetensors.torch
import torch

from splatopt.core.checks import InputError
from splatopt.core.files import append_only
from splatopt.core.reading import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    AbsentFileError,
    DamagedFileError,
    parse_json,
    parse_tensors,
    read_bounded,
    read_json,
    read_object,
)

DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"{} {}", "it is not JSON"),
        (b"\xef\xbb\xbf{}", "it is not JSON .*BOM"),
        ('{"a": 1}'.encode("utf-16"), "it is not UTF-8"),
        (b'{"a": "\xe9"}', r"it is not UTF-8 \(byte 7\)"),
        (b"[" * DEEP + b"]" * DEEP, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, f"nested more than {MAX_DEPTH} deep"),
        (b"[" * 60 + b"]" * 60, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b"[Infinity]", "Infinity is not a finite number"),
        (b"[1e400]", "'1e400' is not a finite number"),
        (b"[-1e400]", "'-1e400' is not a finite number"),
        (b"1" + b"0" * 5000, r"'10{78}…' is not a whole number of at most 64 bits"),
        (b"18446744073709551616", "is not a whole number of at most 64 bits"),
        (b'{"a": 1, "b": 2, "a": 3}', "it names 'a' twice in one object"),
        (b'["\\ud800"]', r"'\\ud800' is not Unicode"),
        (b'{"\\ud800": 1}', "is not Unicode"),
    ],
)
def test_json_of_another_form_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(DamagedFileError, match=said) as raised:
        read_json(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 400


def test_json_of_the_form_is_read(tmp_path):
    value = {"a": [1, 2.5, -3, 2**63, None, True, "é", {"b": []}], "name not in UTF-8": "\udce9", "deep": []}
    inner = value["deep"]
    for _ in range(MAX_DEPTH - 3):
        inner.append([])
        inner = inner[0]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value == read_object(path)


def test_what_is_no_object_is_refused_where_one_is_wanted(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    assert read_object(tmp_path / "absent.json") is None
    with pytest.raises(DamagedFileError, match=r"x\.json cannot be read: it must hold a JSON object"):
        read_object(tmp_path / "x.json")


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(AbsentFileError, match=r"x\.json cannot be read: No such file"):
        read_bounded(path)
    os.mkfifo(path)
    with pytest.raises(DamagedFileError, match="it is no regular file"):
        read_bounded(path)
    with pytest.raises(OSError, match="No such device"):
        append_only(path)
    with pytest.raises(DamagedFileError, match="it is a folder"):
        read_bounded(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DamagedFileError, match="Too many levels of symbolic links"):
        read_bounded(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(AbsentFileError):
        read_bounded(tmp_path / "dangling")
    with pytest.raises(DamagedFileError, match="no file can have this name"):
        read_bounded(tmp_path / "a\0b")
    with pytest.raises(DamagedFileError, match="it is no regular file"):
        read_bounded(type(path)("/dev/zero"))


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(DamagedFileError, match="it holds 5 bytes, more than 4"):
        read_bounded(path, 4)
    # A file with holes may say that it holds more than the machine has memory.
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(2**43)
    with pytest.raises(DamagedFileError, match="it holds 8,796,093,022,208 bytes"):
        read_bounded(tmp_path / "holes", 2**60)


def test_tensors_are_read_as_they_were_written():
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor(7, dtype=torch.int64),
        "none": torch.empty(0, 15, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
    }
    found = parse_tensors(safetensors.torch.save(tensors), "x")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def header(values: object, body: bytes = b"") -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is not safetensors"),
        (b"\xff" * 8, "it is not safetensors"),
        (struct.pack("<Q", 2**63), "it is not safetensors"),
        (header([]), "it is not safetensors"),
        (header({"__metadata__": {"a": {"b": 1}}}), "it is not safetensors"),
        (header(entry(shape=(2,)), b"1234"), "it is not safetensors"),
        (header(entry(shape=(2**62, 2**62)), b"1234"), "it is not safetensors"),
        (header(entry(shape=(0, 2**40, 2**20), offsets=(0, 0))), "'a' is of the shape"),
        (header(entry(shape=(1,) * 30), b"1234"), "'a' is of the shape"),
        (header(entry(dtype="F8_E5M2", shape=(4,)), b"1234"), "'a' is of the type 'F8_E5M2'"),
        (header(entry(dtype="X9"), b"1234"), "it is not safetensors"),
    ],
)
def test_tensors_of_another_form_are_refused(data, said):
    with pytest.raises(DamagedFileError, match=f"the file cannot be read: {said}"):
        parse_tensors(data, "the file")


def test_a_refusal_is_an_input_error_and_quotes_no_more_than_it_must():
    with pytest.raises(InputError) as raised:
        parse_json(b'{"' + b"\\u001b" * 500 + b'": 1, "' + b"\\u001b" * 500 + b'": 1}', "x")
    assert "\x1b" not in str(raised.value)
    assert "\\x1b" in str(raised.value)
    assert str(raised.value).count("\\x1b") == 79
    assert MAX_JSON_BYTES == 64 * 2**20
