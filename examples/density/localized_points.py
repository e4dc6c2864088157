"""Where: more rows in the zones in which the errors of two views meet (Localized Points Management), without matches.

    splatopt train CAPTURE --plugin examples/density/localized_points.py --density localized-points

LPM carries regions of large error from one view to another by matched points, and takes a ball where their cones meet.
A strategy sees neither cameras nor depths, but it can ask what share of what a row draws in one view lies in the error
mask of that view, ē = Σ w e / Σ w with e = 1 where the error is above twice the view's mean, else 0. Weights are
largest at the surface, so a row with ē ≥ ½ in two views lies where both cones meet the rendered surface: it is the
centre of a zone, and the zone is a ball of its largest scale. At an edit:

- inside zones the threshold is lower: a row counts as if its gradient were ``boost`` times as large;
- where a zone holds no row but its centre, a drawn centre is not split; a new, faint row of half its size begins there;
- in front, every ``reset_every`` edits: rows outside all zones that cover half of some pixel and lie in one view's mask
  get an opacity of 0.01 at most, and their opacity's momentum begins anew. Without depth that is "in the cone, opaque
  and not of the zone"; such a row may also be a surface that only one view sees wrong.

Source: LPM (density control by localized points management); zones by rows instead of matches are our own. It does not
prune by density. All else is gain's: how many, when, and how rows are split.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt import SceneEdit, Written, register_density
from splatopt.core.row_statistics import absolute_error
from splatopt.density.gain import Gain, GainOptions
from splatopt.density.strategy import StepTaken

VIEWS = 8
"""Training views that are looked at before an edit."""

ZONES = 256
"""Zones at most: those of the largest error."""

FAINT, RESET = 0.1, 0.01
"""Opacities of a new row, and after a reset; 3DGS'."""


@dataclass(frozen=True)
class LocalizedOptions(GainOptions):
    """Gain's, and what is done about zones."""

    boost: float = 4.0
    """How many times lower the threshold is inside zones. Unit: factor."""

    reset_every: int = 4
    """Rows in front are reset once in so many edits; 0 for never. Unit: edits."""


def error_mask(image: Tensor, target: Tensor) -> Tensor:
    """Return 1 where the error is above twice the view's mean, else 0."""
    found = absolute_error(image, target)
    return (found > 2 * found.mean()).to(found)


class LocalizedPoints(Gain):
    """Draws, adds and resets rows by zones of error; splits as gain does."""

    @torch.no_grad()
    def edit(self, step: StepTaken) -> SceneEdit | None:
        edit = super().edit(step)
        every = self.options.every * self.options.reset_every
        if edit is None or every == 0 or step.progress.step % every:
            return edit
        return edit.then(self.reset(edit))

    def scores(self) -> Tensor:
        zones, self.alone, self.front = self.zones()
        return super().scores() * torch.where(zones, self.options.boost, 1.0)

    def zones(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return which rows lie in a zone, which are a zone's centre and alone in it, and which are in front, (N,)."""
        parameters = self.objective.parameters
        views = torch.tensor(self.limits.views)
        chosen = views[torch.randperm(len(views), generator=self.generator)[:VIEWS]].tolist()
        drawn = torch.zeros_like(parameters["logit_opacities"])
        share = drawn.new_zeros(max(2, len(chosen)), len(drawn))
        for place, view in enumerate(chosen):
            found = self.objective.statistics([view], error_mask, False)
            share[place] = found.weighted_error / found.weight.clamp_min(1e-12)
            drawn = drawn.maximum(found.max_weight)
        first, second = share.topk(2, dim=0).values
        centres = second.argsort(descending=True, stable=True)[:ZONES]
        centres = centres[second[centres] >= 0.5]
        means, radii = parameters["means"], parameters["log_scales"][centres].amax(dim=1).exp()
        inside = torch.cdist(means, means[centres], compute_mode="donot_use_mm_for_euclid_dist") <= radii
        zones, alone = inside.any(dim=1), torch.zeros_like(drawn, dtype=torch.bool)
        alone[centres[inside.sum(dim=0) == 1]] = True
        return zones, alone, ~zones & (first >= 0.5) & (drawn >= 0.5)

    def split(self, rows: Tensor) -> SceneEdit:
        """Return gain's splits of ``rows``, but a new row where one is alone in its zone."""
        self.front[rows] = False
        lonely = rows[self.alone[rows]]
        edit = super().split(rows[~self.alone[rows]])
        parameters, places = self.objective.parameters, torch.arange(len(edit) + len(lonely), device=rows.device)
        new = places[len(edit) :]
        values = {
            "log_scales": Written(new, parameters["log_scales"][lonely] - math.log(2)),
            "logit_opacities": Written(new, torch.full_like(parameters["logit_opacities"][lonely], logit(FAINT))),
        }
        return edit.then(SceneEdit(torch.cat([places[: len(edit)], lonely]), places >= len(edit), values))

    def reset(self, edit: SceneEdit) -> SceneEdit:
        """Return the edit that brings down the opacities of rows in front, which ``edit`` left where they were."""
        logits = edit.parameter("logit_opacities", self.objective.parameters["logit_opacities"])
        front = torch.zeros_like(logits, dtype=torch.bool)
        front[: len(self.front)] = self.front
        rows = front.nonzero().squeeze(1)
        lowered = {"logit_opacities": Written(rows, logits[rows].clamp(max=logit(RESET)))}
        return SceneEdit.in_place(len(edit), logits.device, lowered, resets={"logit_opacities": front})


def logit(opacity: float) -> float:
    return math.log(opacity / (1 - opacity))


register_density("localized-points", LocalizedPoints, LocalizedOptions, help=LocalizedPoints.__doc__)
