"""A checkpoint is whole or not believed, and a failed one costs nothing."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from splatopt.core import checkpoint as module
from splatopt.core.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    latest_checkpoint,
    load_checkpoint,
    replace_file,
    save_checkpoint,
)


def sample(step: int) -> Checkpoint:
    tensors = {
        "cloud.means": torch.randn(4, 3, generator=torch.Generator().manual_seed(step)),
        "generator": torch.Generator().manual_seed(step).get_state(),
        "sampler": torch.tensor([2, 0], dtype=torch.int64),
        "nothing": torch.empty(0, 15, 3),
    }
    return Checkpoint(step, tensors, {"seconds": 0.1 + step, "optimizer": {"steps": step}})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    saved = sample(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    assert loaded.step == 7
    assert loaded.scalars == saved.scalars
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, value in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], value)
        assert loaded.tensors[name].dtype == value.dtype


def test_views_of_one_buffer_are_saved(tmp_path):
    buffer = torch.arange(6.0)
    saved = Checkpoint(1, {"a": buffer[:4].view(2, 2), "b": buffer[2:]}, {})
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    assert loaded.tensors["a"].tolist() == [[0, 1], [2, 3]]
    assert loaded.tensors["b"].tolist() == [2, 3, 4, 5]


def test_the_two_newest_are_kept(tmp_path):
    for step in (0, 5, 10, 15):
        save_checkpoint(tmp_path, sample(step))
    assert names(tmp_path) == ["step-000010", "step-000015"]
    newest, warnings = latest_checkpoint(tmp_path)
    assert newest.step == 15
    assert warnings == []


def test_order_is_by_number_not_by_name(tmp_path):
    save_checkpoint(tmp_path, sample(999_999))
    save_checkpoint(tmp_path, sample(1_000_000))
    assert latest_checkpoint(tmp_path)[0].step == 1_000_000


def test_a_step_is_written_again(tmp_path):
    save_checkpoint(tmp_path, sample(5))
    again = Checkpoint(5, {"cloud.means": torch.ones(1, 3)}, {})
    save_checkpoint(tmp_path, again)
    assert latest_checkpoint(tmp_path)[0].tensors["cloud.means"].tolist() == [[1, 1, 1]]


def test_going_back_makes_later_ones_stale(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, sample(step))
    save_checkpoint(tmp_path, sample(7))
    assert names(tmp_path) == ["step-000005", "step-000007"]


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "tensors cut in half": lambda folder: cut(folder / "tensors.safetensors"),
    "tensors empty": lambda folder: cut(folder / "tensors.safetensors", 0),
    "one bit flipped": lambda folder: flip(folder / "tensors.safetensors"),
    "tensors missing": lambda folder: (folder / "tensors.safetensors").unlink(),
    "numbers cut in half": lambda folder: cut(folder / "checkpoint.json"),
    "numbers missing": lambda folder: (folder / "checkpoint.json").unlink(),
    "numbers of something else": lambda folder: (folder / "checkpoint.json").write_text("[1, 2]"),
    "another format": lambda folder: (folder / "checkpoint.json").write_text(json.dumps({"format": "x"})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_detected_and_the_previous_used(tmp_path, damage):
    save_checkpoint(tmp_path, sample(5))
    newest = save_checkpoint(tmp_path, sample(10))
    DAMAGES[damage](newest)
    with pytest.raises(DamagedCheckpointError, match="step-000010"):
        load_checkpoint(newest)
    found, warnings = latest_checkpoint(tmp_path)
    assert found.step == 5
    assert len(warnings) == 1
    assert "step-000010" in warnings[0]


def test_leftovers_of_a_kill_are_ignored_and_replaced(tmp_path):
    save_checkpoint(tmp_path, sample(5))
    partial = tmp_path / ".step-000010.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path)[0].step == 5
    save_checkpoint(tmp_path, sample(10))
    assert names(tmp_path) == ["step-000005", "step-000010"]


@pytest.mark.parametrize("failing", ["tensors.safetensors", "checkpoint.json"])
def test_a_full_disk_keeps_the_previous_and_leaves_no_part(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, sample(5))
    write = module.write_durably

    def full(path, data):
        write(path, data[: len(data) // 2])
        if path.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_durably", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, sample(10))
    assert names(tmp_path) == ["step-000005"]
    assert latest_checkpoint(tmp_path)[0].step == 5


def test_none_is_found_where_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") == (None, [])


def test_replacing_a_file_fails_whole(tmp_path, monkeypatch):
    path = tmp_path / "eval.json"
    replace_file(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert names(tmp_path) == ["eval.json"]
    assert path.read_bytes() == b"old"
