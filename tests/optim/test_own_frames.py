"""Adam in each Gaussian's own frame: derivatives, exact turns, and worlds that are turned and resized."""

from __future__ import annotations

import pytest
import torch

from raster.cases import make_camera, random_cloud
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.schema import unit_rotation_matrices
from splatopt.optim.parts.own_frames import turn_gradient, turned
from splatopt.raster.render import make_renderer
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.rigid_motion import rotation_of
from splatopt.scene.similarity import Similarity


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradient_of_turns_is_that_of_autograd():
    quats, weights = draw(7, 4), draw(7, 4, seed=1)
    turns = torch.zeros(7, 3, dtype=torch.float64, requires_grad=True)
    (torch.nn.functional.normalize(turned(quats, turns), dim=1) * weights).sum().backward()
    free = quats.clone().requires_grad_()
    (torch.nn.functional.normalize(free, dim=1) * weights).sum().backward()
    # At 0 the turn's length has no derivative, and sinc and cosine of it have the derivative 0.
    torch.testing.assert_close(turn_gradient(quats, free.grad), torch.nan_to_num(turns.grad), atol=1e-12, rtol=0)


def test_turns_about_own_axes_are_exact_and_keep_lengths():
    quats, turns = torch.nn.functional.normalize(draw(9, 4), dim=1), draw(9, 3, seed=1)
    about = torch.stack([rotation_of(turn) for turn in turns])
    expected = unit_rotation_matrices(quats) @ about
    torch.testing.assert_close(unit_rotation_matrices(turned(quats, turns)), expected, atol=1e-12, rtol=0)
    wandering = 3 * quats
    for step in range(1000):
        wandering = turned(wandering, 0.1 * draw(9, 3, seed=step))
    torch.testing.assert_close(wandering.norm(dim=1), torch.full((9,), 3.0, dtype=torch.float64), atol=1e-11, rtol=0)


def trained(cloud, camera, target, steps: int):
    renderer = make_renderer("reference")
    objective = PhotometricObjective(cloud.clone(), [camera], [target], renderer)
    entry = find_optimizer("adam-frames")
    optimizer = entry.optimizer(objective, entry.options())
    for step in range(steps):
        optimizer.step([0], Progress(step, steps))
    return objective.cloud


@pytest.mark.parametrize("degree", [0, 2])
def test_a_turned_and_resized_world_takes_turned_and_resized_steps(degree):
    cloud = random_cloud(torch.Generator().manual_seed(degree), 20, degree)
    camera = make_camera(24, 18)
    target = torch.randint(0, 256, (18, 24, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    rotation = rotation_of(torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64))
    moves = Similarity(rotation, 2.5, torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    after = moves.cloud(trained(cloud, camera, target, 5))
    also = trained(moves.cloud(cloud), moves.camera(camera), target, 5)
    for name, value in after.tensors.items():
        torch.testing.assert_close(also.tensors[name], value, atol=1e-8, rtol=1e-7)
    assert (after.means - moves.cloud(cloud).means).abs().max() > 0.01
