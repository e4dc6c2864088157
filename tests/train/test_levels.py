"""Coarse to fine: what a level shows, what follows a change of level, and that runs go on bit-exactly through it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.processes import Processes
from splatopt.core.checkpoint import read_checkpoint
from splatopt.data import CaptureOptions, load_capture
from splatopt.optim.parts.block_solve import BlockSolve
from splatopt.raster.render import open_backend, find_backend
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.events import Evaluated, Stepped
from splatopt.train.levels import CoarseToFine, Level, factor_at, parse_levels
from splatopt.train.loop import train
from splatopt.train.process_context import ProcessContext
from train.toys import Listener, ToyRenderer, cut, lasting, load_toy_capture

LEVELS = "4:6,2:14"


def test_levels_are_read_and_found_by_step():
    levels = parse_levels(" 4:300 , 2:900 ")
    assert levels == (Level(4, 300), Level(2, 900))
    assert [factor_at(levels, step) for step in (0, 299, 300, 899, 900, 10**6)] == [4, 4, 2, 2, 1, 1]
    assert parse_levels("") == parse_levels("  ") == ()
    assert factor_at((), 0) == 1


@pytest.mark.parametrize(
    "text", ["4", "4:", ":300", "4:300,", "1:300", "2.5:300", "4:0", "2:300,4:900", "4:300,2:300", "-4:3", "4:1e3"]
)
def test_other_levels_are_refused_in_one_sentence(settings, text):
    with pytest.raises(InputError, match="--levels"):
        settings(levels=text)
