"""Gaussian scenes: the cloud, where it starts, what it is fitted to and how it is kept."""

from __future__ import annotations

from splatopt.metrics.image import ViewScore
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective

__all__ = ["GaussianCloud", "PhotometricObjective", "ViewScore"]
