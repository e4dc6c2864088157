"""Learned optimizers: the network that steps, and its training.

Importing this registers ``learned``.
"""

from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.network import SIZES, LearnedNetwork, NetworkOptions
from splatopt.meta.weights import LearnedWeights, load_weights, save_weights, shipped_names

__all__ = [
    "SIZES",
    "Learned",
    "LearnedNetwork",
    "LearnedOptions",
    "LearnedWeights",
    "NetworkOptions",
    "load_weights",
    "save_weights",
    "shipped_names",
]
