"""``SceneOptimizer`` on tensors that say they lie on CUDA: nothing of two devices mixes."""

from __future__ import annotations

import pytest
import torch

from fake_gpu import fake_gpu, on_gpu
from splatopt.core.scene_edit import SceneEdit
from splatopt.torch_api import SceneOptimizer
from torch_api.toy_scene import parameters


@pytest.mark.parametrize("name", ["adam", "sign-tr", "learned", "tr2", "block-gn"])
def test_steps_and_edits_stay_on_the_gpu(name, monkeypatch):
    here = {key: value.detach().clone() for key, value in parameters(dtype=torch.float64).items()}
    with fake_gpu(monkeypatch):
        params = {key: value.to("cuda:0").requires_grad_() for key, value in here.items()}
        target = torch.zeros(24, 3, dtype=torch.float64, device="cuda:0")

        def residuals():
            bright = params["sh0"][:, 0] + params["shN"].sum(dim=1) + params["opacities"][:, None]
            return (bright + params["means"] + params["scales"] + params["quats"][:, 1:] - target) / 10

        optimizer = SceneOptimizer(name, params, steps=20)
        losses = []
        for step in range(6):
            if step == 3:
                keep = torch.arange(24, device="cuda:0") % 3 > 0
                optimizer.apply(SceneEdit.keep(keep))
                target = target[keep]
            evaluation = optimizer.step(residuals)
            losses.append(evaluation.loss)
        assert losses[2] < losses[0]
        assert losses[5] < losses[3]
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        with optimizer.averaged():
            assert all(on_gpu(value) for value in params.values())
        optimizer.step(residuals)
        assert len(params["means"]) == 16
        assert all(on_gpu(value) and torch.isfinite(value).all() for value in params.values())
