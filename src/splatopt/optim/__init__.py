"""Optimizers, one file per family; importing this package registers all of them."""

from __future__ import annotations

from splatopt.optim import zoo  # noqa: F401 - registers its family
from splatopt.optim.averaging import Averaged
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.bridge import Feed, TorchOptimizer, bridge
from splatopt.optim.by_name import make_optimizer
from splatopt.optim.curvature_diagonal import ESGD, AdaHessianE, AdaHessianJ, CurvatureDiagonal, ESGDMax
from splatopt.optim.diagonal_gauss_newton import (
    AdamTrustRegion,
    AdamTrustRegionOptions,
    DiagonalGaussNewton,
    DiagonalGaussNewtonOptions,
    PublishedGaussNewton,
    PublishedGaussNewtonOptions,
    SignTrustRegion,
    SignTrustRegionOptions,
)
from splatopt.optim.first_order import (
    Adam,
    AdamOptions,
    OwnFrameAdam,
    OwnFrameAdamOptions,
    SearchedAdamOptions,
    TunedAdamOptions,
)
from splatopt.optim.hessian_diagonal import AdaHessian, AdaHessianOptions, Esgd, EsgdOptions, Sophia, SophiaOptions
from splatopt.optim.kfac import KFAC
from splatopt.optim.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtOptions
from splatopt.optim.shampoo import Shampoo

__all__ = [
    "ESGD",
    "KFAC",
    "AdaHessian",
    "AdaHessianE",
    "AdaHessianJ",
    "AdaHessianOptions",
    "Adam",
    "AdamOptions",
    "AdamTrustRegion",
    "AdamTrustRegionOptions",
    "Averaged",
    "BlockGaussNewton",
    "BlockGaussNewtonOptions",
    "CurvatureDiagonal",
    "DiagonalGaussNewton",
    "DiagonalGaussNewtonOptions",
    "ESGDMax",
    "Esgd",
    "EsgdOptions",
    "Feed",
    "LevenbergMarquardt",
    "LevenbergMarquardtOptions",
    "OwnFrameAdam",
    "OwnFrameAdamOptions",
    "PublishedGaussNewton",
    "PublishedGaussNewtonOptions",
    "SearchedAdamOptions",
    "Shampoo",
    "SignTrustRegion",
    "SignTrustRegionOptions",
    "Sophia",
    "SophiaOptions",
    "TorchOptimizer",
    "TunedAdamOptions",
    "bridge",
    "make_optimizer",
]
