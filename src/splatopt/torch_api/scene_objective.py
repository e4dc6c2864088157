"""What a scene's optimizer asks, answered from gradients that were accumulated and from residuals of any renderer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import (
    Batch,
    Evaluation,
    GaussNewtonBlocks,
    MissingOracleError,
    Objective,
    Oracle,
    Residuals,
    Tensors,
)
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.curvature.blocks import side_by_side
from splatopt.curvature.estimators import rademacher
from splatopt.torch_api.scene_parameters import SceneParameters

ResidualsFunction: TypeAlias = Callable[[], Tensor | Sequence[Tensor]]
"""Renders, and returns r with its graph to the parameters, one tensor or several, such that the loss is ½‖r‖²."""

RELATIVE_STEP = 1e-3
"""h‖v‖ / (1 + ‖θ‖) of a difference of residuals."""

_NO_LOSS = 1.0
"""What is told where nobody says what the loss is: one that stands still."""


@dataclass(frozen=True)
class StepInputs:
    """What one step is told.

    Attributes:
        residuals: Renders; None where a step has gradients alone.
        loss: The loss; ½‖r‖² when None and the gradient is of the residuals.
        visible: Rows that the views draw, (N,) bool; those with a gradient when None.
        views: Numbers of the views, a view's always the same.
        penalty: The gradient of a penalty on the parameters, by our names and in our shapes.
    """

    residuals: ResidualsFunction | None = None
    loss: float | None = None
    visible: Tensor | None = None
    views: Sequence[int] = ()
    penalty: Tensors = field(default_factory=dict)


NO_INPUTS = StepInputs()
"""A step after ``backward()`` that is told nothing beside."""


class SceneObjective(Objective):
    """A scene in someone else's trainer.

    The gradient is what backward passes have left in ``.grad``, or, where they have left none, that of ½‖r‖²; a
    penalty's is added to either, and makes no row count as seen. Jᵀu is a backward pass through one graph of the
    residuals, which is made when it is first asked for in a step and held until its end. J v is a central difference of
    residuals, two renderings without a graph, since few renderers can be differentiated forwards. Blocks of JᵀJ are a
    mean over random signs u of (Jᵀu)(Jᵀu)ᵀ in each row: unbiased.
    """

    def __init__(
        self, scene: SceneParameters, length_scale: float, block_probes: int, generator: torch.Generator
    ) -> None:
        """Keep the parameters.

        Args:
            scene: They.
            length_scale: The scene's extent, world units.
            block_probes: Backward passes that blocks of JᵀJ are measured by.
            generator: Source of their signs.
        """
        if not 0 < length_scale < math.inf:
            raise InputError(f"scene_scale must be a positive number, got {length_scale}")
        if block_probes < 1:
            raise InputError(f"the number of probes must be at least 1, got {block_probes}")
        self.scene, self._length_scale = scene, length_scale
        self._block_probes, self._generator = block_probes, generator
        self._inputs = NO_INPUTS
        self._graph: tuple[Tensor, ...] = ()
        self._asked = self._is_own_loss = False

    def begin(self, inputs: StepInputs) -> None:
        """Take up what the next step is told."""
        self._inputs, self._asked, self._is_own_loss = inputs, False, False

    def end(self) -> None:
        """Let go of the step's graph."""
        self._inputs, self._graph = NO_INPUTS, ()

    @property
    def parameters(self) -> Tensors:
        """The six tensors of Gaussians, which share the dictionary's memory."""
        return self.scene.views

    @property
    def oracles(self) -> frozenset[Oracle]:
        """The gradient, and with residuals products and blocks; no exact diagonal and no second derivative."""
        return frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.VJP, Oracle.GAUSS_NEWTON_BLOCKS})

    @property
    def length_scale(self) -> float:
        """The scene's extent, world units."""
        return self._length_scale

    @property
    def backend(self) -> str:
        """Whose renderer it is."""
        return "given renderer's"

    @property
    def block_names(self) -> tuple[str, ...]:
        """All tensors but the colour's higher bands."""
        return BLOCK_TENSORS

    def views(self, batch: Batch) -> Sequence[int]:
        """Return the views that the step was told of."""
        return self._inputs.views

    def gradient(self, batch: Batch) -> Evaluation:
        """Return what the step was told of the loss, and its gradient with the penalty's.

        Raises:
            MissingOracleError: It is asked for twice in a step, as for a difference of gradients.
        """
        if self._asked:
            raise MissingOracleError(
                "the gradient was asked for at a second point, and a step after backward() has the one of its loss "
                "alone; make a splatopt.ModuleObjective of the loss for such an optimizer"
            )
        self._asked = True
        found: dict[str, Tensor | None] = {key: value.grad for key, _, value in self.scene.trained()}
        loss = self._inputs.loss
        if all(part is None for part in found.values()):
            residuals, self._is_own_loss = self._residuals(), True
            own = sum(float(part.detach().square().sum(dtype=torch.float64)) for part in residuals) / 2
            loss = own if loss is None else loss
            gradient = self._backward(tuple(part.detach() for part in residuals))
        else:
            gradient = self.scene.in_our_shapes(found)
        seen = _touched(gradient) if self._inputs.visible is None else self._inputs.visible
        for name, part in self._inputs.penalty.items():
            gradient[name] = gradient[name] + part  # a new tensor: the one before may be `.grad` itself
        return Evaluation(
            loss=_NO_LOSS if loss is None else loss,
            gradient=gradient,
            seen=seen,
            metrics={},
        )

    def value(self, batch: Batch) -> float:
        """Return ½‖r‖² at the parameters of now.

        Raises:
            MissingOracleError: The step's gradient is of another loss, which cannot be rendered.
        """
        if not self._is_own_loss:
            raise MissingOracleError(
                "the loss was asked for at a second point, and that of backward() is not known there; leave backward() "
                "out, so that the loss is ½‖r‖² of the residuals, or leave out the option that asks for it (min_reach)"
            )
        return sum(float(part.square().sum(dtype=torch.float64)) for part in self._rendered()) / 2

    def residuals(self, batch: Batch) -> Residuals:
        """Return r."""
        return tuple(part.detach() for part in self._residuals())

    def empty_residuals(self, batch: Batch) -> Residuals:
        """Return tensors in the shapes of r."""
        return self.residuals(batch)

    def vjp(self, batch: Batch, cotangent: Residuals) -> Tensors:
        """Return Jᵀu by a backward pass."""
        self._residuals()
        return self._backward(cotangent)

    def jvp(self, batch: Batch, tangent: Tensors) -> Residuals:
        """Return (r(θ + h v) - r(θ - h v)) / 2h, h‖v‖ = 10⁻³ (1 + ‖θ‖); the parameters are put back, bit for bit."""
        # Of `.data`, which leaves no trace in the step's graph: the values are those of before when it is used again.
        parameters = {name: value.data for name, value in self.parameters.items() if name in tangent}
        length = _norm({name: tangent[name] for name in parameters})
        if length == 0:
            return tuple(torch.zeros_like(part) for part in self.residuals(batch))
        step = RELATIVE_STEP * (1 + _norm(parameters)) / length
        kept = {name: value.clone() for name, value in parameters.items()}
        try:
            ends = [self._rendered_at(parameters, kept, tangent, change) for change in (step, -step)]
        finally:
            for name, value in kept.items():
                parameters[name].copy_(value)
        return tuple((ahead - behind).div_(2 * step) for ahead, behind in zip(*ends, strict=True))

    def gauss_newton_blocks(self, batch: Batch) -> GaussNewtonBlocks:
        """Return each Gaussian's 14x14 block, and the diagonal of ``sh_rest``, by residual probes."""
        residuals, views = self._residuals(), self.parameters
        size = sum(views[name][:, None].flatten(1).shape[1] for name in BLOCK_TENSORS)
        row, column = torch.tril_indices(size, size, device=views["means"].device)
        blocks = views["means"].new_zeros(len(views["means"]), len(row))
        diagonal = torch.zeros_like(views["sh_rest"])
        for _ in range(self._block_probes):
            signs = tuple(rademacher(part.detach(), self._generator) for part in residuals)
            found = self._backward(signs)
            side = side_by_side(found, BLOCK_TENSORS)
            blocks.addcmul_(side[:, row], side[:, column], value=1 / self._block_probes)
            diagonal.addcmul_(found["sh_rest"], found["sh_rest"], value=1 / self._block_probes)
        return GaussNewtonBlocks(BLOCK_TENSORS, blocks, {"sh_rest": diagonal})

    # ------------------------------------------------------------------ the renderer

    def _residuals(self) -> tuple[Tensor, ...]:
        """Return this step's residuals with their graph."""
        if not self._graph:
            with torch.enable_grad():
                found = self._render()
            if not any(part.requires_grad for part in found):
                raise InputError("residuals_fn must return residuals with their graph to the parameters, got none")
            self._graph = found
        return self._graph

    def _rendered(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self._render()

    def _rendered_at(self, into: Tensors, kept: Tensors, tangent: Tensors, change: float) -> list[Tensor]:
        for name, value in kept.items():
            torch.add(value, tangent[name], alpha=change, out=into[name])
        return [part.clone() for part in self._rendered()]

    def _render(self) -> tuple[Tensor, ...]:
        if self._inputs.residuals is None:
            raise MissingOracleError(
                "this optimizer asks for curvature: call step(residuals_fn), where residuals_fn() renders and returns "
                "residuals r, a tensor or several with their graph, such that the loss is ½‖r‖²"
            )
        found = self._inputs.residuals()
        parts = (found,) if isinstance(found, Tensor) else tuple(found)
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise InputError("residuals_fn must return a tensor, or several")
        return parts

    def _backward(self, cotangent: Residuals) -> dict[str, Tensor]:
        """Return Jᵀu through the step's graph, which is kept."""
        keys, leaves = zip(*((key, value) for key, _, value in self.scene.trained()), strict=True)
        parts = [(part, along) for part, along in zip(self._graph, cotangent, strict=True) if part.requires_grad]
        outputs, along = (list(side) for side in zip(*parts, strict=True))
        found = torch.autograd.grad(outputs, leaves, along, retain_graph=True, allow_unused=True)
        return self.scene.in_our_shapes(dict(zip(keys, found, strict=True)))


def _touched(gradient: Tensors) -> Tensor:
    """Return which rows have a gradient, (N,)."""
    names = ("means", "logit_opacities", "sh_dc")
    return torch.stack([gradient[name][:, None].flatten(1).any(dim=1) for name in names]).any(dim=0)


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
