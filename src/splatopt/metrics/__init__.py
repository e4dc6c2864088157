"""How close an image is to its target."""

from splatopt.metrics.image import psnr, ssim

__all__ = ["psnr", "ssim"]
