"""What of a cloud a browser is sent."""

from __future__ import annotations

import math

import numpy as np
import torch

from splatopt.scene.gaussians import GaussianCloud
from splatopt.viewer.splats import Snapshot, Thresholds, browser_splats, chosen_rows


def make_cloud(n: int = 50) -> GaussianCloud:
    generator = torch.Generator().manual_seed(0)
    sizes = {"means": (n, 3), "log_scales": (n, 3), "quats": (n, 4), "logit_opacities": (n,), "sh_dc": (n, 3)}
    tensors = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    return GaussianCloud(**tensors, sh_rest=torch.zeros(n, 3, 3))


def test_covariances_have_the_scales_as_eigenvalues():
    snapshot = Snapshot.of(make_cloud())
    sent = browser_splats(snapshot, np.arange(50))
    found = np.sort(np.linalg.eigvalsh(sent.covariances.astype(np.float64)), axis=1)
    np.testing.assert_allclose(found, np.sort(np.exp(2 * snapshot.log_scales), axis=1), rtol=1e-3)


def test_an_axis_points_where_its_quaternion_says():
    cloud = make_cloud(1)
    half = math.sqrt(0.5)
    cloud.quats[:] = 3 * torch.tensor([[half, 0, 0, half]])  # a quarter turn around z
    cloud.log_scales[:] = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    covariance = browser_splats(Snapshot.of(cloud), np.arange(1)).covariances[0]
    np.testing.assert_allclose(covariance, np.diag([1.0, 4.0, 1.0]), atol=1e-5)


def test_thresholds_leave_out_the_faint_and_the_large():
    cloud = make_cloud(3)
    cloud.logit_opacities[:] = torch.tensor([-5.0, 2.0, 2.0])
    cloud.log_scales[:] = torch.tensor([0.0, 0.0, 2.0])[:, None]
    snapshot = Snapshot.of(cloud)
    assert chosen_rows(snapshot, Thresholds()).tolist() == [0, 1, 2]
    assert chosen_rows(snapshot, Thresholds(min_opacity=0.5)).tolist() == [1, 2]
    assert chosen_rows(snapshot, Thresholds(max_size=1.5)).tolist() == [0, 1]


def test_of_too_many_the_opaque_and_large_are_sent():
    cloud = make_cloud(4)
    cloud.logit_opacities[:] = torch.tensor([3.0, -6.0, 3.0, 3.0])
    cloud.log_scales[:] = torch.tensor([1.0, 1.0, -3.0, 0.5])[:, None]
    assert chosen_rows(Snapshot.of(cloud), Thresholds(), max_shown=2).tolist() == [0, 3]


def test_a_snapshot_shares_no_memory_with_the_live_cloud():
    cloud = make_cloud()
    snapshot = Snapshot.of(cloud)
    before = snapshot.means.copy()
    cloud.means.add_(1)
    np.testing.assert_array_equal(snapshot.means, before)


def test_what_16_bits_cannot_hold_is_cut():
    cloud = make_cloud(1)
    cloud.log_scales.fill_(50.0)
    assert np.isfinite(browser_splats(Snapshot.of(cloud), np.arange(1)).covariances.astype(np.float16)).all()
