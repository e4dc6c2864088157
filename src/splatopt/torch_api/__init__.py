"""splatopt inside other people's PyTorch.

A scene's optimizer in three lines, in any trainer::

    from splatopt.torch_api import SceneOptimizer

    optimizer = SceneOptimizer("learned", params, scene_scale=1.3)  # gsplat's dictionary of parameters
    loss.backward()
    optimizer.step()
"""

from __future__ import annotations

from splatopt.torch_api.gsplat_strategies import SceneStrategy
from splatopt.torch_api.photometric_residuals import photometric_residuals
from splatopt.torch_api.scene_optimizer import SceneOptimizer

__all__ = ["SceneOptimizer", "SceneStrategy", "photometric_residuals"]
