"""The renderer's own images for the page."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from splatopt.raster.renderer import Renderer
from splatopt.raster.threads import quiet_torch
from splatopt.raster.types import Gaussians, RenderOptions
from splatopt.viewer.orders import Order


@dataclass(frozen=True)
class Rendering:
    """What renders orders, and how.

    Attributes:
        renderer: Not the run's own, so that nothing that one keeps between views is touched.
        options: How it is rendered.
    """

    renderer: Renderer
    options: RenderOptions

    def image(self, gaussians: Gaussians, order: Order, sh_degree: int | None = None) -> np.ndarray:
        """Return the image of an order, (h, w, 3) uint8.

        Args:
            gaussians: What is rendered.
            order: Through which camera.
            sh_degree: Up to which degree; that of the options when None.
        """
        options = self.options if sh_degree is None else replace(self.options, sh_degree=sh_degree)
        with torch.no_grad(), quiet_torch(self.renderer):
            image = self.renderer.render(gaussians, order.camera, options).image
        return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy()
