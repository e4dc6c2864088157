"""Bytes that a step of the network takes beside what a run remembers, for each Gaussian."""

from __future__ import annotations

import math

from splatopt.core.objective import Tensors
from splatopt.meta.constants import LANES, ROW_FEATURES, TILE_OUTPUTS
from splatopt.meta.network import DIRECTIONS, NetworkOptions

_FLOAT, _DOUBLE, _INDEX = 4, 8, 8
_TASK_ROWS = 4 * 32
"""Rows of a task of the native passes: four groups of 32."""

_ROW_SUMS = 22
"""Numbers that a task of the first native pass adds up."""


def native_row_bytes(shape: NetworkOptions) -> int:
    """Return the bytes that the native passes keep of a row, as ``LearnedPasses::lay_out`` does, and its neighbours'.

    Each thread has some tens of rows more.
    """
    heads = math.ceil(shape.attention / LANES) * LANES if shape.neighbours else 0
    keys_and_values = 2 * heads * (2 if shape.blocks > 1 else 1)
    width = math.ceil(shape.width / TILE_OUTPUTS) * TILE_OUTPUTS
    numbers = ROW_FEATURES + shape.latent + DIRECTIONS + 1 + width + 1 + heads + keys_and_values
    lists = 3  # of rows
    sums = math.ceil(_DOUBLE * (_ROW_SUMS + shape.width) / _TASK_ROWS)
    return _FLOAT * (numbers + lists) + sums + _INDEX * shape.neighbours


def torch_row_bytes(shape: NetworkOptions, parameters: Tensors) -> int:
    """Return the most bytes of a row that live at once where PyTorch takes the step, and its neighbours'.

    That is in the hungriest of its parts: features, attention, MLP, latent state, head, and the step itself.

    Args:
        shape: The network's.
        parameters: A cloud's six tensors, whose type the step has.
    """
    own = {name: math.prod(value.shape[1:]) for name, value in parameters.items()}
    row, bands = sum(own.values()), own["sh_rest"]
    width, latent, attention = shape.width, shape.latent, shape.attention
    inputs = ROW_FEATURES + latent
    kept = ROW_FEATURES + 20 + row  # features, axes, roots of mean squares
    neighbour = 2 * attention + 3
    parts = {
        "features": 2 * ROW_FEATURES + 9 + bands,
        "attention": inputs + 2 * width + 3 * attention + shape.neighbours * neighbour if shape.neighbours else 0,
        "mlp": inputs + (7 if shape.neighbours else 6) * width,
        "latent": inputs + 5 * latent + width,
        "head": inputs + 3 * latent + 4 * width + 46,
        "step": latent + 39 + 3 * row + bands,
    }
    return parameters["means"].element_size() * (kept + max(parts.values())) + _INDEX * shape.neighbours
