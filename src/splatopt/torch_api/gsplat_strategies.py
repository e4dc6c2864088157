"""Our density strategies behind gsplat's ``Strategy`` interface."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from typing import Any, NoReturn, TypeAlias

import torch

from splatopt.core.checks import InputError, nearest_names
from splatopt.core.objective import Batch, MissingOracleError, Objective, Oracle, Tensors
from splatopt.core.optimizer import Progress
from splatopt.core.row_statistics import ErrorMap, GradientStatistics
from splatopt.core.scene_edit import SceneEdit
from splatopt.density.strategy import DensityLimits, DensityStrategy, StepTaken, find_density
from splatopt.optim.torch_state import edited_state
from splatopt.torch_api.row_tracing import EditedScene, RowProxy
from splatopt.torch_api.scene_parameters import ParameterDict, SceneParameters

Optimizers: TypeAlias = Mapping[str, torch.optim.Optimizer]
"""One for each trained key, as gsplat's trainers have them; or ``SceneOptimizer.optimizers``."""

StrategyState: TypeAlias = MutableMapping[str, Any]
"""What gsplat's trainers hand back to a strategy."""

Info: TypeAlias = Mapping[str, Any]
"""What gsplat's ``rasterization`` tells of a rendering."""

_KEY = "means2d"


class SceneStrategy:
    """One of our density strategies (``gain``, ``adc``, ``mcmc`` or a plug-in's), where gsplat's trainers have theirs.

    Used as gsplat's own are::

        strategy = SceneStrategy("gain", steps=30_000, max_gaussians=500_000)
        strategy.check_sanity(params, optimizers)
        state = strategy.initialize_state(scene_scale)
        for step in range(30_000):
            colors, alphas, info = rasterization(..., absgrad=True)
            strategy.step_pre_backward(params, optimizers, state, step, info)
            loss.backward()
            ...  # every optimizer's step
            strategy.step_post_backward(params, optimizers, state, step, info)

    States of ``torch.optim`` optimizers follow, as those of ``SceneOptimizer`` do. What a strategy looks at is had from
    ``info``: radii, and the gradients of ``means2d`` with their absolute ones, which ``gain`` wants
    (``absgrad=True``). One that asks for more, such as blending weights or splitting matrices, is refused in a
    sentence. A penalty of ``mcmc``'s is added to the gradients, with ``SceneOptimizer`` within its step, and not to the
    loss that the trainer sees.
    """

    def __init__(
        self,
        name: str,
        *,
        steps: int = 30_000,
        max_gaussians: int = 1_000_000,
        background: tuple[float, float, float] = (0.0, 0.0, 0.0),
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Choose a strategy.

        Args:
            name: As after ``--density``.
            steps: Of the whole run.
            max_gaussians: At most so many.
            background: Colour behind the scene, RGB in [0, 1].
            seed: Of its draws.
            **options: The strategy's own.

        Raises:
            InputError: There is no such strategy or option.
        """
        self._entry, self._steps, self._seed, self.name = find_density(name), steps, seed, name
        known = {field.name for field in fields(self._entry.options)}
        for option in options:
            if option not in known:
                raise InputError(f"the strategy {name!r} has no option {option!r}; {nearest_names(option, known)}")
        self._options = self._entry.options(**options)
        self._limits = DensityLimits(max_gaussians, (), background)

    def check_sanity(self, params: ParameterDict, optimizers: Optimizers) -> None:
        """Raise InputError unless each trained tensor has an optimizer, with one group, and all tensors have N rows."""
        trained = {key for key in params if params[key].requires_grad}
        if trained != set(optimizers):
            raise InputError(
                f"each trained parameter must have an optimizer of its name, got {', '.join(sorted(trained))} and "
                f"{', '.join(sorted(optimizers))}"
            )
        for key, optimizer in optimizers.items():
            if [len(group["params"]) for group in optimizer.param_groups] != [1]:
                raise InputError(f"the optimizer of {key!r} must have one group with one tensor")
        scene = SceneParameters(params)
        scene.check_others(scene.count)

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        """Return the strategy's state before the first step.

        Args:
            scene_scale: The scene's extent, world units.
        """
        return {"scene_scale": scene_scale, "working": None}

    @torch.no_grad()
    def step_pre_backward(
        self, params: ParameterDict, optimizers: Optimizers, state: StrategyState, step: int, info: Info
    ) -> None:
        """Have the gradient of the centres in the image kept, and add that of the strategy's penalty."""
        scene = _scene_of(optimizers)
        if scene is not None:
            scene.follow()
        working = self._working(params, state)
        if working.observes(Progress(step, self._steps)):
            if _KEY not in info:
                raise InputError(f"{self.name} looks at info[{_KEY!r}], which there is not")
            info[_KEY].retain_grad()
        penalty = working.strategy.penalty()
        if penalty is not None:
            working.add_penalty(penalty[1], optimizers)

    @torch.no_grad()
    def step_post_backward(
        self,
        params: ParameterDict,
        optimizers: Optimizers,
        state: StrategyState,
        step: int,
        info: Info,
        packed: bool = False,
        lr: float | None = None,
    ) -> None:
        """Count what the rendering told, move and edit the scene.

        Args:
            params: The dictionary; its tensors are replaced where rows are edited.
            optimizers: Their states follow.
            state: What :meth:`initialize_state` gave.
            step: Steps done before this one.
            info: Of the step's rendering.
            packed: Of gsplat's signature, and not read: the shape of ``info["means2d"]`` tells, (C, N, 2) of all rows
                and (rows, 2) packed.
            lr: The means' rate; their optimizer's own when None.
        """
        scene = _scene_of(optimizers)
        if scene is not None:
            scene.follow()
        working = self._working(params, state)
        if working.observes(Progress(step, self._steps)):
            working.count(info)
        rate = lr if lr is not None else working.rate(optimizers)
        taken = StepTaken(Progress(step + 1, self._steps), rate or None, math.nan)
        working.strategy.move(taken)
        edit = working.strategy.edit(taken)
        if edit is not None and len(edit):
            working.carry_out(edit, optimizers, scene)

    def _working(self, params: ParameterDict, state: StrategyState) -> _Working:
        """Return the strategy at work on this scene; made when it is first asked for."""
        if state["working"] is None:
            scene = SceneParameters(params)
            objective = _Statistics(scene, state["scene_scale"])
            generator = torch.Generator().manual_seed(self._seed)
            strategy = self._entry.strategy(objective, self._options, self._limits, generator)
            state["working"] = _Working(self.name, scene, strategy)
        working = state["working"]
        assert isinstance(working, _Working)
        working.scene.bind()
        return working


class _Statistics(Objective):
    """What a strategy may ask of a scene that someone else renders: its parameters."""

    def __init__(self, scene: SceneParameters, length_scale: float) -> None:
        self._scene, self._length_scale = scene, length_scale

    @property
    def parameters(self) -> Tensors:
        return self._scene.views

    @property
    def oracles(self) -> frozenset[Oracle]:
        return frozenset({Oracle.GRADIENT, Oracle.STATISTICS})

    @property
    def length_scale(self) -> float:
        return self._length_scale

    @property
    def backend(self) -> str:
        return "given renderer's"

    def gradient(self, batch: Batch) -> NoReturn:
        raise MissingOracleError("this density strategy asks for gradients of its own, which a given renderer has not")

    def statistics(self, batch: Batch, error: ErrorMap, cross: bool = True) -> NoReturn:
        raise MissingOracleError(
            "this density strategy looks at blending weights and errors of pixels, which gsplat's info does not hold; "
            "take gain, adc or mcmc"
        )


class _Working:
    """A strategy at work on one scene."""

    def __init__(self, name: str, scene: SceneParameters, strategy: DensityStrategy) -> None:
        sums = strategy.gradient_statistics
        if sums is not None and sums.splitting is not None:
            raise InputError(f"{name} looks at splitting matrices, which gsplat's info does not hold")
        self.name, self.scene, self.strategy = name, scene, strategy

    def observes(self, progress: Progress) -> bool:
        return self.strategy.gradient_statistics is not None and self.strategy.observes(progress)

    def rate(self, optimizers: Optimizers) -> float:
        """Return the means' rate, as their optimizer has it."""
        key = next(key for key, name in self.scene.names.items() if name == "means")
        return float(optimizers[key].param_groups[0]["lr"]) if key in optimizers else 0.0

    def add_penalty(self, gradient: Tensors, optimizers: Optimizers) -> None:
        """Add a penalty's gradient to those of the parameters, or hand it to the optimizer of their scene."""
        for key, name, value in self.scene.trained():
            if name not in gradient:
                continue
            more, optimizer = self.scene.in_its_shape(key, gradient[name]), optimizers.get(key)
            if isinstance(optimizer, RowProxy):
                optimizer.add_penalty(more)
            else:
                value.grad = more.clone() if value.grad is None else value.grad + more

    def count(self, info: Info) -> None:
        """Add one rendering of ``n_cameras`` views to the statistics, see ``GradientStatistics``."""
        sums: GradientStatistics | None = self.strategy.gradient_statistics
        assert sums is not None
        if len(sums.views) != self.scene.count:
            raise InputError(f"rows were edited beside {self.name}, which has lost count; let one strategy edit them")
        centers, radii = info[_KEY], info["radii"]
        half = torch.tensor([info["width"], info["height"]], device=radii.device) / 2 * info["n_cameras"]
        if centers.grad is None:
            raise InputError(f"info[{_KEY!r}] has no gradient: call step_pre_backward, then loss.backward()")
        # Older versions of gsplat have one radius, newer ones one for each axis.
        radii = radii if radii.dim() == centers.dim() else radii[..., None]
        drawn = (radii > 0).all(dim=-1)
        rows = info["gaussian_ids"][drawn] if centers.dim() == 2 else torch.nonzero(drawn)[:, -1]
        sizes = radii[drawn].amax(dim=-1) / max(info["width"], info["height"])
        sums.views.index_add_(0, rows, torch.ones_like(sums.views[rows]))
        sums.gradient.index_add_(0, rows, (centers.grad[drawn] * half).norm(dim=-1).to(sums.gradient))
        sums.max_radius.scatter_reduce_(0, rows, sizes.to(sums.max_radius), "amax")
        if sums.absolute is not None:
            absolute = getattr(centers, "absgrad", None)
            if absolute is None:
                raise InputError(f"{self.name} looks at absolute gradients: call rasterization with absgrad=True")
            sums.absolute.index_add_(0, rows, (absolute[drawn] * half).norm(dim=-1).to(sums.absolute))

    def carry_out(self, edit: SceneEdit, optimizers: Optimizers, scene: EditedScene | None) -> None:
        """Edit values and states."""
        if scene is not None:
            scene.apply(edit)
        else:
            self._edit(edit, optimizers)
        self.scene.bind()
        self.strategy.edit_rows(edit)

    def _edit(self, edit: SceneEdit, optimizers: Optimizers) -> None:
        self.scene.check_others(self.scene.count)
        given, views = self.scene.given, dict(self.scene.views)
        for key in list(given):
            old, name = given[key], self.scene.names.get(key, key)
            if name in views:
                self.scene.replace(key, self.scene.in_its_shape(key, edit.parameter(name, views[name])))
            else:
                self.scene.replace(key, edit.gather(old.detach()))
            if key in optimizers:
                kept = optimizers[key].state.pop(old, {})
                optimizers[key].param_groups[0]["params"] = [given[key]]
                if kept:
                    optimizers[key].state[given[key]] = edited_state(name, old.shape, kept, edit, given[key])


def _scene_of(optimizers: Optimizers) -> EditedScene | None:
    """Return the scene's optimizer where these are its keys'."""
    scenes = {id(one.scene): one.scene for one in optimizers.values() if isinstance(one, RowProxy)}
    if len(scenes) > 1:
        raise InputError("the optimizers are of two scenes")
    return next(iter(scenes.values()), None)
