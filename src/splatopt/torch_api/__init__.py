"""splatopt inside other people's PyTorch: a rasterizer in gsplat's signature, and optimizers over their parameters.

A scene's optimizer in three lines, in any trainer::

    from splatopt.torch_api import SceneOptimizer

    optimizer = SceneOptimizer("learned", params, scene_scale=1.3)  # gsplat's dictionary of parameters
    loss.backward()
    optimizer.step()
"""

from splatopt.torch_api.covariances import quat_scale_to_covar_preci
from splatopt.torch_api.fused_projection import fully_fused_projection
from splatopt.torch_api.gsplat_strategies import SceneStrategy
from splatopt.torch_api.harmonics import spherical_harmonics
from splatopt.torch_api.photometric_residuals import photometric_residuals
from splatopt.torch_api.rasterization import rasterization
from splatopt.torch_api.relocation import compute_relocation, gsplat_on_cpu
from splatopt.torch_api.scene_optimizer import SceneOptimizer

__all__ = [
    "SceneOptimizer",
    "SceneStrategy",
    "compute_relocation",
    "fully_fused_projection",
    "gsplat_on_cpu",
    "photometric_residuals",
    "quat_scale_to_covar_preci",
    "rasterization",
    "spherical_harmonics",
]
