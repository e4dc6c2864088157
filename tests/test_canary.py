"""The suite's own alarm: it fails where the annotations' shapes are not checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from splatopt.raster.ssim import ssim_map_reference


def test_a_wrong_shape_raises():
    image = torch.rand(13, 12, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TypeCheckError, match="ssim_map_reference"):
        ssim_map_reference(image, image[:-1])


def test_the_right_shape_passes():
    image = torch.rand(13, 12, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ssim_map_reference(image, image), torch.ones(13, 12, 3))
