"""Parts of files are new files under known names; what is replaced is replaced whole, in the right order."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splatopt.core.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    replace_file,
    save_checkpoint,
    sweep_checkpoints,
)
from splatopt.core.checks import InputError
from splatopt.core.files import (
    append_only,
    discard,
    locked,
    make_folder,
    new_file,
    partial_path,
    trim_lines,
    whole_file,
    whole_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"new")


@pytest.mark.parametrize("writer", [write, lambda path: replace_file(path, b"new")])
def test_a_link_in_place_of_a_part_is_not_written_through(tmp_path, writer):
    precious = tmp_path / "kept.txt"
    precious.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".eval.json.partial").symlink_to(precious)
    (folder / "eval.json").symlink_to(precious)
    writer(folder / "eval.json")
    assert precious.read_text() == "precious"
    assert (folder / "eval.json").read_bytes() == b"new"
    assert not (folder / "eval.json").is_symlink()
    assert names(folder) == ["eval.json"]


def test_a_folder_in_place_of_a_part_goes(tmp_path):
    (tmp_path / ".eval.json.partial" / "x").mkdir(parents=True)
    write(tmp_path / "eval.json")
    assert names(tmp_path) == ["eval.json"]


def test_a_link_to_a_folder_is_removed_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "kept.txt").touch()
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in (".step-000005.partial", ".step-000005.before", "step-000005", "step-000001", ".step-000001.dropped"):
        (checkpoints / name).symlink_to(tmp_path / "precious")
    for step in (5, 6):
        save_checkpoint(checkpoints, Checkpoint(step, {"x": torch.zeros(1)}, {}))
    assert names(checkpoints) == ["step-000005", "step-000006"]
    assert names(tmp_path / "precious") == ["kept.txt"]


def test_a_new_file_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    with pytest.raises(FileExistsError), new_file(tmp_path / "a"):
        pass
    with pytest.raises(InputError, match="is a link, and nothing is written through it"):
        append_only(tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_a_failure_leaves_what_was_there_and_no_part(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_names_of_any_length_have_a_part(tmp_path):
    long = tmp_path / ("x" * 251 + ".png")
    write(long)
    assert long.read_bytes() == b"new"
    assert partial_path(long).name.endswith(".png.partial")
    assert names(tmp_path) == [long.name]


def test_discarding_takes_files_folders_links_and_nothing(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for name in ("folder", "link", "file", "absent", "file/below"):
        discard(tmp_path / name)
    assert names(tmp_path) == []


@pytest.fixture
def order(tmp_path, monkeypatch):
    """Names of what is flushed and renamed, in their order."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def named(descriptor: int) -> None:
        done.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def audit(event: str, arguments: tuple) -> None:
        if event == "os.rename" and watching and str(arguments[0]).startswith(str(tmp_path)):
            done.append(f"rename {Path(arguments[0]).name} {Path(arguments[1]).name}")

    assert os.rename is rename
    watching = [True]
    sys.addaudithook(audit)
    monkeypatch.setattr(os, "fsync", named)
    yield done
    watching.clear()


def test_a_file_is_flushed_then_renamed_and_then_its_name_is_flushed(tmp_path, order):
    write(tmp_path / "a")
    replace_file(tmp_path / "b", b"")
    assert order == [
        *("flush .a.partial", "rename .a.partial a", f"flush {tmp_path.name}"),
        *("flush .b.partial", "rename .b.partial b", f"flush {tmp_path.name}"),
    ]


def test_a_checkpoint_is_flushed_from_the_inside_out(tmp_path, order):
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        save_checkpoint(folder, Checkpoint(5, {"x": torch.zeros(1)}, {}))
    written = [*("flush tensors.safetensors", "flush checkpoint.json", "flush .step-000005.partial")]
    assert order == [
        f"flush {tmp_path.name}",
        *written,
        *("rename .step-000005.partial step-000005", "flush checkpoints"),
        *written,
        "rename step-000005 .step-000005.before",
        *("rename .step-000005.partial step-000005", "flush checkpoints"),
    ]


def test_folders_that_are_made_have_their_names_flushed(tmp_path, order):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert order == [f"flush {tmp_path.name}", "flush a"]


def test_a_checkpoint_that_was_moved_aside_counts_until_the_new_one_is_there(tmp_path):
    step = save_checkpoint(tmp_path, Checkpoint(5, {"x": torch.ones(1)}, {}))
    step.rename(tmp_path / ".step-000005.before")
    (tmp_path / ".step-000006.partial").mkdir()
    (tmp_path / ".step-000004.dropped").mkdir()
    (tmp_path / ".step-notes").touch()
    assert latest_checkpoint(tmp_path)[0].step == 5
    sweep_checkpoints(tmp_path)
    assert names(tmp_path) == [".step-notes", "step-000005"]
    assert latest_checkpoint(tmp_path)[0].tensors["x"].item() == 1
    (tmp_path / ".step-000005.before").mkdir()
    sweep_checkpoints(tmp_path)
    assert names(tmp_path) == [".step-notes", "step-000005"]


def test_lines_after_a_step_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"kind": "x"}\n{"step": 3}\n{"step": 2}\n{"st')
    trim_lines(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert names(tmp_path) == ["log.jsonl"]


HOLDER = """
import sys
from pathlib import Path
from splatopt.core.files import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_until_its_holder_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for shared in (False, True):
            refused = pytest.raises(InputError, match=r"at work on the run; .*--out")
            with refused, locked(tmp_path, "the run", shared=shared):
                pass
        holder.kill()
        holder.wait()
        with locked(tmp_path, "the run", shared=True), locked(tmp_path, "the run", shared=True):
            pass
    assert names(tmp_path) == []


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path, "the run"), locked(tmp_path, "the run"):
        pass


def test_a_folder_appears_whole_and_its_part_is_met_again(tmp_path):
    folder = tmp_path / "capture"
    (tmp_path / ".capture.partial" / "old").mkdir(parents=True)
    with pytest.raises(InputError, match="at work on the capture"), whole_folder(folder, "the capture") as partial:
        assert names(partial) == []
        with whole_folder(folder, "the capture"):
            pass
    with whole_folder(folder, "the capture") as partial:
        (partial / "new").touch()
    assert names(tmp_path) == ["capture"]
    assert names(folder) == ["new"]
