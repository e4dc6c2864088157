"""Print a hash of what the native module computes, a line an instruction set, with NumPy alone: a build's fingerprint.

Usage: python tests/wheels/native_bits.py [FOLDER of the package]

Two builds whose lines are equal render the same image, with the same gradients and steps, bit for bit.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

WIDTH, HEIGHT, COUNT, REST = 70, 50, 500, 15
SHAPES = ((COUNT, 3), (COUNT, 3), (COUNT, 4), (COUNT,), (COUNT, 3), (COUNT, REST, 3))


def results(native, instructions: str) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    lows, highs = (-1, -4, -1, -2, -1, -0.2), (1, -1.5, 1, 3, 1, 0.2)
    values = [random.uniform(*bounds).astype("f4") for bounds in zip(lows, highs, SHAPES, strict=True)]
    target_bytes = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    window = np.exp(-(np.arange(-5.0, 6.0) ** 2) / 4.5)
    constants = native.Constants(
        near_plane=0.01, low_pass=0.3, max_alpha=0.999, min_alpha=1 / 255, min_transmittance=1e-4, frustum_margin=0.3,
        ssim_c1=1e-4, ssim_c2=9e-4, window=(window / window.sum()).tolist(),
    )  # fmt: skip
    view = native.View(
        rotation=np.eye(3).ravel().tolist(), center=[0.0, 0.0, -3.0],
        intrinsics=[60.0, 60.0, WIDTH / 2, HEIGHT / 2], width=WIDTH, height=HEIGHT, background=[0.5] * 3,
        antialiased=False,
    )  # fmt: skip
    pixels = 3 * WIDTH * HEIGHT
    rule = native.LossRule(
        penalty="absolute", ssim_weight=0.2, count=pixels, pixel_scale=(0.8 / pixels) ** 0.5,
        pixel_half_scale=(0.4 / pixels) ** 0.5, ssim_half_scale=(0.1 / pixels) ** 0.5, floor_dissimilarity=1e-6,
    )  # fmt: skip
    workers = native.Workers(2, instructions)
    rasterizer = native.Rasterizer(constants, workers)
    cloud = native.Cloud(native.CloudTensors(*values), 3)
    target = native.TargetImage(target_bytes, None)
    image = np.empty((HEIGHT, WIDTH, 3), np.float32)
    gradient = [np.zeros_like(value) for value in values]
    rasterizer.forward(view, cloud)
    rasterizer.copy_image(image)
    loss = np.array(rasterizer.loss(target, rule))
    rasterizer.backward(cloud, 1.0, native.CloudTensors(*gradient), np.zeros(COUNT, bool), overwrite=True)
    blocks, rest = np.zeros((COUNT, 105), np.float32), np.zeros(SHAPES[-1], np.float32)
    rasterizer.set_pixel_curvature(target, rule)
    rasterizer.blocks(cloud, 1.0, blocks, rest, overwrite=True)
    moved, slope = values[0].ravel().copy(), gradient[0].ravel()
    first, second = np.zeros_like(moved), np.zeros_like(moved)
    workers.adam_step(moved, slope, first, second, rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-15, step=1)
    found = [image, loss, *gradient, blocks, rest, moved]
    assert all(np.isfinite(array).all() and array.any() for array in found)
    return found


if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:]
    import splatopt._native as module

    for name in module.supported_isas():
        digest = hashlib.sha256(b"".join(array.tobytes() for array in results(module, name)))
        print(name, digest.hexdigest())
