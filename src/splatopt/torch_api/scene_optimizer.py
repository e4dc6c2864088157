"""A scene's optimizer over somebody else's dictionary of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, Oracle
from splatopt.core.optimizer import Entry, Optimizer, Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.meta.learned import Learned
from splatopt.optim.averaging import RunningAverage
from splatopt.optim.by_name import options_of
from splatopt.optim.diagonal_gauss_newton import DiagonalGaussNewton
from splatopt.optim.habits import RefusesGradScaler
from splatopt.optim.types import Group
from splatopt.torch_api.row_tracing import RowProxy, traced_edit
from splatopt.torch_api.scene_objective import NO_INPUTS, ResidualsFunction, SceneObjective, StepInputs
from splatopt.torch_api.scene_parameters import ParameterDict, SceneParameters, check_rows

BLOCK_PROBES = 8
"""Backward passes that blocks of JᵀJ are measured by."""

OTHERS_RATE = 2.5e-3
"""Adam's rate of parameters that are no Gaussian's, such as features; gsplat's and 3DGS' for colours."""


class SceneOptimizer(RefusesGradScaler):
    """Any optimizer of scenes, by name, in any trainer.

    Three lines of it are new::

        optimizer = SceneOptimizer("learned", params, scene_scale=1.3, steps=30_000)
        for step in range(30_000):
            loss = ...  # rendered by whatever is differentiable
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    Those that need gradients alone (``learned``, ``sign-tr``, ``adam-tr``, ``adam``, ``adam-tuned``, ``zoo:NAME``) take
    ``step()`` after ``backward()``. Those with curvature (``tr2``, ``block-gn``) take ``step(residuals_fn)``, which is
    called where curvature is due: it renders and returns residuals r with their graph, such that ½‖r‖² is the loss or
    comes near it. After a ``backward()`` the gradient is what that left in ``.grad``; without one it is of ½‖r‖².

    Parameters are shared: steps write them in place. The dictionary may be read at any time, and its rows are edited by
    gsplat's strategies on :attr:`optimizers`, by :meth:`apply` or, where somebody else has replaced its tensors, by
    :meth:`edit_rows`. Tensors on CUDA take the passes in Triton or plain PyTorch, whichever there is.

    What is not as in ``splatopt train``: curvature is by random probes, backward passes through the given renderer,
    and J v by a difference of two renderings. ``learned`` is told by ``step(loss=…)`` what the loss is, and by
    ``step(views=…)`` which views it shows; where it is not, the loss counts as one that stands still, so that there is
    no falling back to Adam, and the colour's higher bands take their whole rate from the start. Rows without a gradient
    count as not seen, unless ``step(visible=…)`` says which are. Between steps the parameters are the last iterate,
    which is what is to be rendered and differentiated; the average that ``learned`` otherwise leaves is there within
    :meth:`averaged`.

    Attributes:
        params: The dictionary.
        optimizers: By key, what gsplat's strategies and trainers take for that key's ``torch.optim`` optimizer. Its
            rate is 0, but of the means the one that ``position_rate`` tells.
    """

    def __init__(
        self,
        name: str,
        params: ParameterDict,
        *,
        scene_scale: float = 1.0,
        steps: int = 30_000,
        names: Mapping[str, str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Bind an optimizer to a scene.

        Args:
            name: One of ``splatopt.optimizer_names()``, or ``zoo:NAME``.
            params: Leaf tensors by gsplat's names or ours. Keys that are no Gaussian's take Adam's steps.
            scene_scale: The scene's extent, 3DGS' and gsplat's: the cameras' distance from their middle. World units.
            steps: What the run is planned for; schedules end there.
            names: Our name of each key, where the keys are neither gsplat's nor ours.
            seed: Of the source of probes.
            **options: The optimizer's own; ``averaged`` of ``learned`` says whether :meth:`averaged` has an average,
                and ``probes`` of ``block-gn`` is the number of backward passes that measure its blocks.

        Raises:
            InputError: There is no such optimizer or option, it asks for what a given renderer does not give, or a
                tensor cannot be trained.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        self.name, self.horizon, self.params = name, steps, params
        self._generator = torch.Generator().manual_seed(seed)
        self._scene = SceneParameters(params, names)
        entry, block_probes, averages = _entry_of(name, options)
        self._objective = SceneObjective(self._scene, scene_scale, block_probes, self._generator)
        self.inner: Optimizer = entry.optimizer(self._objective, options_of(entry, name, options), self._generator)
        self._average = self._make_average() if averages else None
        self._steps, self._edited = 0, False
        self._make_proxies()

    def _make_average(self) -> RunningAverage | None:
        power = self.inner.weights.rates.average_power if isinstance(self.inner, Learned) else 0.0
        return RunningAverage(self._scene.views, power) if power else None

    def _make_proxies(self) -> None:
        trained = [key for key, _, _ in self._scene.trained()]
        if not trained:
            raise InputError("none of the scene's parameters requires a gradient")
        self._others = {
            key: torch.optim.Adam([self.params[key]], lr=OTHERS_RATE, eps=1e-15)
            for key in self._scene.others
            if self.params[key].requires_grad
        }
        self._proxies = {key: RowProxy(self.params[key], self, takes_step=key == trained[0]) for key in trained}
        self.optimizers: dict[str, torch.optim.Optimizer] = {**self._proxies, **self._others}
        self._rebind()

    # ------------------------------------------------------------------ steps

    def step(
        self,
        residuals_fn: ResidualsFunction | None = None,
        *,
        loss: Tensor | float | None = None,
        visible: Tensor | None = None,
        views: Sequence[int] = (),
    ) -> Evaluation | None:
        """Take one step.

        Args:
            residuals_fn: Renders and returns residuals; called where curvature is due, for J v without a graph and at
                parameters to either side, and without ``backward()`` in every step.
            loss: The loss; ``learned`` watches it.
            visible: Rows that the step's views draw, (N,) bool.
            views: Numbers of the step's views, a view's always the same; ``learned`` counts different ones.

        Returns:
            The loss as it is known, the gradient, and what there is beside; None where an edit of rows has taken the
            gradients away, and no step can be taken.

        Raises:
            InputError: There is neither a gradient nor a function of residuals, or a ``GradScaler`` calls.
        """
        self.refuse_scaler()
        number = loss.item() if isinstance(loss, Tensor) else loss
        evaluation = self.step_gaussians(StepInputs(residuals_fn, number, visible, tuple(views)))
        for other in self._others.values():
            other.step()
        return evaluation

    @torch.no_grad()
    def step_gaussians(self, inputs: StepInputs = NO_INPUTS) -> Evaluation | None:
        """Take one step of what is a Gaussian's alone, see :meth:`step`; the others have optimizers of their own."""
        self.follow()
        has_gradient, visible = any(value.grad is not None for _, _, value in self._scene.trained()), inputs.visible
        if not has_gradient and inputs.residuals is None:
            if self._edited:
                self._edited = False
                return None
            raise InputError("there is no gradient to take a step by: call loss.backward() first")
        if visible is not None and (visible.dtype != torch.bool or visible.shape != (self._scene.count,)):
            raise InputError(
                f"visible must be ({self._scene.count},) bool, got {tuple(visible.shape)} {visible.dtype}; of gsplat's "
                "radii (C, N, 2) it is (radii > 0).all(-1).any(0)"
            )
        frozen = self._frozen()
        self._objective.begin(replace(inputs, penalty=self._take_penalty()))
        try:
            evaluation = self.inner.step(None, Progress(self._steps, self.horizon))
        finally:
            self._objective.end()
        for view, kept in frozen:
            view.copy_(kept)
        if self._average is not None:
            self._average.take_in(self._scene.views)
        self._steps += 1
        self._edited = False
        self._after_step()
        return evaluation

    def _take_penalty(self) -> dict[str, Tensor]:
        """Return the penalty's gradient, by our names and in our shapes, and let go of it."""
        found: dict[str, Tensor] = {}
        for key, proxy in self._proxies.items():
            if proxy.penalty is not None:
                name = self._scene.names[key]
                found[name] = proxy.penalty.reshape(self._scene.views[name].shape)
                proxy.penalty = None
        return found

    def _frozen(self) -> list[tuple[Tensor, Tensor]]:
        """Return those views of which the tensors are not trained, with their values."""
        names = {name for _, name, _ in self._scene.trained()}
        return [(view, view.clone()) for name, view in self._scene.views.items() if name not in names]

    def _after_step(self) -> None:
        self._logits = self._scene.views["logit_opacities"].clone()
        for key, name, _ in self._scene.trained():
            if name == "means":
                self._proxies[key].param_groups[0]["lr"] = self.position_rate

    @property
    def position_rate(self) -> float:
        """The rate of the means in the next step, world units, as MCMC's noise wants it; 0 where there is none."""
        return self.inner.position_rate(Progress(self._steps, self.horizon)) or 0.0

    @property
    def warnings(self) -> list[str]:
        """Sentences about what happened in steps, for a person to read; whoever reads them may take them out."""
        return self.inner.warnings

    @property
    def param_groups(self) -> list[Group]:
        """One group for each trained key, as of a ``torch.optim`` optimizer; to be read, for example to clip."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the average of the iterates in the parameters for a while, where the optimizer has one.

        It is what is to be looked at, scored and saved; no step may be taken meanwhile.
        """
        self.follow()
        if self._average is None:
            yield
            return
        kept = {name: view.clone() for name, view in self._scene.views.items()}
        try:
            for name, view in self._scene.views.items():
                view.copy_(self._average.values[name])
            yield
        finally:
            for name, view in self._scene.views.items():
                view.copy_(kept[name])

    # ------------------------------------------------------------------ rows

    def follow(self) -> None:
        """Have all states follow what a strategy has done to the rows; steps do it by themselves."""
        bound = self._scene.tensors
        traced = [key for key, proxy in self._proxies.items() if proxy.parameter is not bound[key]]
        strange = [key for key, proxy in self._proxies.items() if self.params[key] is not proxy.parameter]
        if strange:
            raise InputError(
                f"the parameter {strange[0]!r} was replaced in the dictionary, and nobody says where its rows came "
                "from; call edit_rows(source, fresh)"
            )
        if traced:
            before = self._logits
            self._scene.bind()
            proxies = {name: self._proxies[key] for key, name, _ in self._scene.trained()}
            self._follow(traced_edit(proxies, self._scene.views["logit_opacities"], before))

    def edit_rows(self, source: Tensor, fresh: Tensor | None = None) -> None:
        """Have all states follow an edit, once every tensor of the dictionary has been replaced by the edited one.

        Args:
            source: Which old row each new row copies, (M,), int64.
            fresh: Whether a new row's states start anew, (M,), bool; none when None.

        Raises:
            InputError: A tensor has another number of rows than ``source``, or had another than the Gaussians before.
        """
        if fresh is None:
            fresh = torch.zeros(source.shape, dtype=torch.bool, device=source.device)
        self._check_source(source)
        count = {len(self.params[key]) for key in self._scene.names}
        if count != {len(source)}:
            raise InputError(
                f"replace the dictionary's tensors before edit_rows: they have {sorted(count)} rows, and source "
                f"{len(source)}; apply(SceneEdit) replaces them by itself"
            )
        self._scene.check_others(len(source))
        for key, adam in self._others.items():
            check_rows(key, adam.param_groups[0]["params"][0], self._scene.count)
        edit = SceneEdit(source, fresh)
        self._edit_others(edit, replaces=False)
        self._scene.bind()
        self._follow(edit)

    @torch.no_grad()
    def apply(self, edit: SceneEdit) -> None:
        """Carry out an edit of one of our strategies: values, written and gathered, and all states.

        Every tensor of the dictionary follows, frozen ones and those that are no Gaussian's too.

        Raises:
            InputError: The edit copies rows that there are not, or a tensor has another number of rows. Nothing has
                been replaced then.
        """
        self.follow()
        self._check_source(edit.source)
        self._scene.check_others(self._scene.count)
        views = dict(self._scene.views)
        for key, name in self._scene.names.items():
            self._scene.replace(key, self._scene.in_its_shape(key, edit.parameter(name, views[name])))
        self._edit_others(edit, replaces=True)
        self._scene.bind()
        self._follow(edit)

    def _check_source(self, source: Tensor) -> None:
        if source.dtype != torch.int64 or (len(source) and int(source.max()) >= len(self._logits)):
            raise InputError(
                f"source must hold int64 rows below {len(self._logits)}, got {source.dtype} up to "
                f"{int(source.max()) if len(source) else None}"
            )

    def _follow(self, edit: SceneEdit) -> None:
        self.inner.edit_rows(edit)
        if self._average is not None:
            self._average.edit_rows(edit, self._scene.views)
        self._edited = True
        self._rebind()

    def _edit_others(self, edit: SceneEdit, *, replaces: bool) -> None:
        """Have Adam's moments of what is no Gaussian's follow, and its tensors where nobody has replaced them."""
        for key in self._scene.others if replaces else ():
            self._scene.replace(key, edit.gather(self.params[key].detach()))
        for key, adam in self._others.items():
            (old,) = adam.param_groups[0]["params"]
            kept = adam.state.pop(old, {})
            rows = {part: edit.gather_state(value) for part, value in kept.items() if part != "step"}
            adam.param_groups[0]["params"] = [self.params[key]]
            if kept:
                adam.state[self.params[key]] = {**kept, **rows}

    def _rebind(self) -> None:
        for key, proxy in self._proxies.items():
            proxy.bind(self.params[key])
        self._after_step()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return all that makes the next step bit-identical: tensors and numbers, with which ``torch.save`` is safe."""
        self.follow()
        kept = self.inner.state()
        average = {} if self._average is None else self._average.tensors()
        return {
            "name": self.name,
            "steps": self._steps,
            "tensors": {name: value.clone() for name, value in {**kept.tensors, **average}.items()},
            "scalars": dict(kept.scalars),
            "generator": self._generator.get_state(),
            "others": {key: adam.state_dict() for key, adam in self._others.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; the dictionary holds that moment's parameters already.

        Raises:
            InputError: It is another optimizer's, or of another number of rows.
        """
        self.follow()
        if not isinstance(state, Mapping) or state.get("name") != self.name:
            came = state.get("name") if isinstance(state, Mapping) else type(state).__name__
            raise InputError(f"this is no state of {self.name}, but of {came}")
        kept = OptimizerState(state["tensors"], state["scalars"])
        self.inner.load_state(kept)
        if self._average is not None:
            self._average.load(kept)
        self._steps = int(state["steps"])
        self._generator.set_state(state["generator"].cpu())
        for key, adam in self._others.items():
            adam.load_state_dict(state["others"][key])
        self._rebind()


def _entry_of(name: str, options: dict[str, Any]) -> tuple[Entry, int, bool]:
    """Return an optimizer's entry, the probes of its blocks, and whether an average is kept here.

    Args:
        name: The optimizer.
        options: What was given for it; becomes what the optimizer is told.
    """
    entry = find_optimizer(name)
    known = {field.name for field in fields(entry.options)}
    asks_blocks = Oracle.GAUSS_NEWTON_BLOCKS in entry.optimizer.needs and "probes" not in known
    probes = options.pop("probes", BLOCK_PROBES) if asks_blocks else BLOCK_PROBES
    averages = False
    if "averaged" in known:  # the average is kept here: an optimizer would leave it where gradients are to be taken
        averages = bool(options.get("averaged", True))
        options["averaged"] = False
    if "estimator" in known and issubclass(entry.optimizer, DiagonalGaussNewton):
        options.setdefault("estimator", "residual")
    return entry, probes, averages
