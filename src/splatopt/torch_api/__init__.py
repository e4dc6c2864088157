"""splatopt inside other people's PyTorch: a rasterizer in gsplat's signature, for CPUs."""

from splatopt.torch_api.covariances import quat_scale_to_covar_preci
from splatopt.torch_api.harmonics import spherical_harmonics
from splatopt.torch_api.rasterization import rasterization
from splatopt.torch_api.relocation import compute_relocation, gsplat_on_cpu

__all__ = [
    "compute_relocation",
    "gsplat_on_cpu",
    "quat_scale_to_covar_preci",
    "rasterization",
    "spherical_harmonics",
]
