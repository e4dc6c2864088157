"""The numbers of the rendering rule, in one place; native code and kernels are handed them."""

from __future__ import annotations

NEAR_PLANE = 0.01
"""Gaussians whose centre lies nearer than this along z are not drawn; units of the scene, see ``core/frame.py``."""

LOW_PASS = 0.3
"""Added to the projected covariance's diagonal, pixels² (EWA low-pass; Zwicker et al. 2001, 3DGS)."""

MAX_ALPHA = 0.999
"""Upper clamp of α; where it acts, α passes no gradient."""

MIN_ALPHA = 1.0 / 255.0
"""Pixel-Gaussian pairs with α below this are skipped."""

MIN_TRANSMITTANCE = 1e-4
"""A ray ends before the first Gaussian that would take its transmittance below this."""

FRUSTUM_MARGIN = 0.3
"""The projection's Jacobian is taken at x/z, y/z clamped to the image's edges plus this share of the
image plane's half width (height) at z = 1, as 3DGS and gsplat do; the centre itself is not clamped."""

SSIM_WINDOW = 11
"""Width of SSIM's Gaussian window, pixels; zero padding at the border, as 3DGS."""

SSIM_SIGMA = 1.5
"""Standard deviation of SSIM's window, pixels."""

SSIM_C1 = 0.01**2
"""SSIM's constant for the means, for images in [0, 1]."""

SSIM_C2 = 0.03**2
"""SSIM's constant for the variances, for images in [0, 1]."""

SSIM_WEIGHT = 0.2
"""λ of the loss (1-λ)·L1 + λ·(1-SSIM)."""
