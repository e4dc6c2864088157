"""3DGS as Markov chain Monte Carlo (Kheradmand et al. 2024): dead rows move to where live ones are, and all explore.

Every so many steps each row of opacity up to ``min_opacity`` becomes a copy of a live one, drawn in proportion to
opacity, and rows are added in the same way until the number that is allowed; a row and its copies share its opacity and
mass (:mod:`splatopt.density.relocation`). Each step's loss has a penalty on opacities and scales, which lets rows die
that no view wants, and after each step centres are moved by noise, those of faint rows alone:

    μ ← μ + Σ ξ · g(o) · 5·10⁵ · rate,   ξ ~ N(0, I),   g(o) = 1 / (1 + exp(-100 (1 - o - 0.995)))

with the optimizer's rate of the centres. Where it has none, the noise is drawn as a trust region measures steps, by the
row's own size: a centre's Hellinger radius is in proportion to its scales s along its own axes R, so

    μ ← μ + 0.2 · 0.01^f · R(s ⊙ ξ) · g(o),   f the share of the run that is done

decays over the run like 3DGS' rate. At the opacity at which a row dies g is ½, and in 100 steps at the start of a run
such a row covers its own size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Tensors
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.density.relocation import draw_rows, relocation
from splatopt.density.schedule import EditSchedule
from splatopt.density.splitting import turned
from splatopt.density.strategy import DensityStrategy, StepTaken, register_density

RATE_NOISE, OWN_NOISE, OWN_DECAY = 5e5, 0.2, 0.01
_GATE_SLOPE, _GATE_CENTRE = 100.0, 0.995
_MIN_GATE = 1e-8
"""Of rows with a smaller one, those of opacities above 0.19, no noise is drawn: float32 could not tell it."""


@dataclass(frozen=True)
class McmcOptions(EditSchedule):
    """The published settings."""

    until: int = 25_000
    """No edit from this step on. Unit: steps of a run of ``horizon`` steps. Source: 3DGS as MCMC."""

    growth: float = 0.05
    """Share of the rows that an edit adds. Unit: fraction. Source: 3DGS as MCMC."""

    min_opacity: float = 0.005
    """Rows with up to this opacity are dead, and no copy gets less. Unit: fraction. Source: 3DGS as MCMC."""

    noise: float = 1.0
    """Factor on the noise; 0 for none. Unit: factor. Source: 3DGS as MCMC."""

    opacity_penalty: float = 0.01
    """Weight of the mean opacity in the loss. Unit: loss. Source: 3DGS as MCMC."""

    scale_penalty: float = 0.01
    """Weight of the mean scale in the loss. Unit: loss per unit of the training frame. Source: 3DGS as MCMC."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        for name in ("growth", "noise", "opacity_penalty", "scale_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.min_opacity < 1:
            raise InputError(f"min_opacity must lie between 0 and 1, got {self.min_opacity}")


class MarkovChain(DensityStrategy[McmcOptions]):
    """Relocates, adds, penalises and moves rows as 3DGS as MCMC does; see the module."""

    def penalty(self) -> tuple[float, Tensors] | None:
        """Return a · mean o + b · mean s, the latter over all axes, and its gradient."""
        opacity, scale = self.options.opacity_penalty, self.options.scale_penalty
        logits, log_scales = (self.objective.parameters[name] for name in ("logit_opacities", "log_scales"))
        if not (opacity or scale) or not len(logits):
            return None
        opacities, scales = logits.sigmoid(), log_scales.exp()
        loss = opacity * float(opacities.mean()) + scale * float(scales.mean())
        return loss, {
            "logit_opacities": opacities * (1 - opacities) * (opacity / opacities.numel()),
            "log_scales": scales * (scale / scales.numel()),
        }

    @torch.no_grad()
    def move(self, step: StepTaken) -> None:
        """Add the noise of one step to the centres."""
        if not self.options.noise:
            return
        parameters = self.objective.parameters
        gate = torch.sigmoid(_GATE_SLOPE * ((-parameters["logit_opacities"]).sigmoid() - _GATE_CENTRE))
        rows = (gate > _MIN_GATE).nonzero().squeeze(1)
        scales, quats = parameters["log_scales"][rows].exp(), parameters["quats"][rows]
        drawn = torch.randn(scales.shape, generator=self.generator, dtype=scales.dtype).to(scales.device)
        if step.position_rate is None:
            factor = OWN_NOISE * OWN_DECAY**step.progress.fraction
            noise = turned(quats, scales * drawn)
        else:
            factor = RATE_NOISE * step.position_rate
            noise = turned(quats, scales.square() * turned(quats, drawn, transposed=True))
        parameters["means"].index_add_(0, rows, noise * (gate[rows] * (self.options.noise * factor))[:, None])

    @torch.no_grad()
    def edit(self, step: StepTaken) -> SceneEdit | None:
        """Return the relocation of dead rows and the addition of new ones where they are due."""
        if not self.options.of_run(step.progress.horizon).is_due(step.progress.step):
            return None
        shares = {name: self.objective.parameters[name] for name in ("logit_opacities", "log_scales")}
        relocated = self._relocate(shares)
        if relocated is not None:
            shares = {name: relocated.parameter(name, value) for name, value in shares.items()}
        added = self._add(shares)
        if relocated is None or added is None:
            return relocated or added
        return relocated.then(added)

    def _relocate(self, shares: Tensors) -> SceneEdit | None:
        """Return the edit that makes every dead row a copy of a live one; None without dead or live ones."""
        opacities = shares["logit_opacities"].sigmoid()
        dead = (opacities <= self.options.min_opacity).nonzero().squeeze(1)
        if not len(dead):
            return None
        drawn = draw_rows(opacities.index_fill(0, dead, 0), len(dead), self.generator)
        if not len(drawn):
            return None
        source = torch.arange(len(opacities), device=dead.device)
        source[dead] = drawn
        return self._share(shares, source, drawn, dead)

    def _add(self, shares: Tensors) -> SceneEdit | None:
        """Return the edit that adds copies of rows; None where there is no room, or no row to copy."""
        opacities = shares["logit_opacities"].sigmoid()
        count = len(opacities)
        more = int(min(self.limits.max_gaussians, (1 + self.options.growth) * count)) - count
        drawn = draw_rows(opacities, max(0, more), self.generator)
        if not len(drawn):
            return None
        rows = torch.arange(count, device=drawn.device)
        places = torch.arange(count, count + len(drawn), device=drawn.device)
        return self._share(shares, torch.cat([rows, drawn]), drawn, places)

    def _share(self, shares: Tensors, source: Tensor, drawn: Tensor, places: Tensor) -> SceneEdit:
        """Return the edit by which drawn rows share opacity and mass with their copies.

        Args:
            shares: Logit opacities and log-scales before it.
            source: Which row each row copies.
            drawn: The rows that are copied, one for each copy.
            places: Where the copies are.
        """
        logits, log_scales = shares["logit_opacities"], shares["log_scales"]
        draws = torch.bincount(drawn, minlength=len(logits))
        parents = draws.nonzero().squeeze(1)
        shared, factor = relocation(_opacities(logits[parents]), draws[parents] + 1)
        shared = shared.clamp(self.options.min_opacity, 1 - torch.finfo(torch.float32).eps)
        values = {
            "logit_opacities": torch.logit(shared).to(logits.dtype),
            "log_scales": (log_scales[parents].double() + factor.log()[:, None]).to(log_scales.dtype),
        }
        rows = torch.cat([parents, places])
        of_copies = torch.searchsorted(parents, drawn)
        written = {name: Written(rows, torch.cat([value, value[of_copies]])) for name, value in values.items()}
        fresh = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        fresh[rows] = True
        return SceneEdit(source, fresh, written)


def _opacities(logits: Tensor) -> Tensor:
    """Opacities in float64, below 1."""
    return logits.double().sigmoid().clamp(max=1 - torch.finfo(torch.float32).eps)


register_density("mcmc", MarkovChain, McmcOptions, help="relocation, growth, noise and penalties of 3DGS as MCMC")
