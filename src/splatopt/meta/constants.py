"""Numbers of the learned optimizer's network that Python and C++ share.

No import stands here: the build reads this file, and ``native/shared_constants.py`` makes a header of it.
"""

from __future__ import annotations

ROW_FEATURES = 83
"""Numbers that the network is told of each Gaussian."""

SCENE_FEATURES = 18
"""Numbers that it is told of the scene."""

AGES = (10.0, 100.0, 1000.0)
"""Ages at which the features that tell youth have fallen to 1/e. Unit: steps."""

MIN_SQUARE = 1e-30
"""Mean squares and losses below count as this, so that their logarithms are finite."""

MAX_LOG_GATE = 4.0
"""Bound of the logarithm of a gate, and of the size of a correction."""

TILE_OUTPUTS = 8
"""Outputs of a layer that the native passes make together; packed weights are padded to it."""

LANES = 16
"""Queries, keys and values are packed in whole vectors of so many numbers."""
