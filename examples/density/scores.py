"""What to split by: other scores in the place of gain's, with everything else the same.

    splatopt train CAPTURE --plugin examples/density/scores.py --density gain-cross

docs/results/density.md has what came of each.
"""

import torch
from torch import Tensor

from splatopt import register_density
from splatopt.core.row_statistics import RowStatistics, absolute_error
from splatopt.core.schema import rotation_matrices
from splatopt.density.gain import Gain, GainOptions

VIEWS = 12


class Scored(Gain):
    """Looks at a few training views before it draws."""

    error = staticmethod(absolute_error)

    def statistics(self, cross: bool = False) -> RowStatistics:
        views = torch.tensor(self.limits.views)
        chosen = views[torch.randperm(len(views), generator=self.generator)[:VIEWS]]
        return self.objective.statistics(chosen.tolist(), self.error, cross)

    def opacities(self) -> Tensor:
        return self.objective.parameters["logit_opacities"].sigmoid()

    def axes(self) -> Tensor:
        """R diag(s): unit vectors of a row's own frame, each one standard deviation long."""
        parameters = self.objective.parameters
        return rotation_matrices(parameters["quats"]) * parameters["log_scales"].exp()[:, None]


class FootprintError(Scored):
    """Σ w e: the error that lies where the row is seen."""

    def scores(self) -> Tensor:
        return self.statistics().weighted_error


class OpacityError(Scored):
    """o Σ w e² (after LiteGS)."""

    def scores(self) -> Tensor:
        return self.opacities() * self.statistics().weighted_squared_error


class FrontError(Scored):
    """max w · Σ w e: rows that are in front somewhere."""

    def scores(self) -> Tensor:
        found = self.statistics()
        return found.max_weight * found.weighted_error


class Opacity(Scored):
    """o, as 3DGS as MCMC draws."""

    def scores(self) -> Tensor:
        return self.opacities()


class Gradient(Scored):
    """The mean length of ∂L/∂m (3DGS)."""

    def scores(self) -> Tensor:
        return self.gradient_statistics.mean_gradient


class Splitting(Scored):
    """-λ_min of the splitting matrix in units of the row's own size (SteepGS)."""

    splitting = True

    def scores(self) -> Tensor:
        found = self.gradient_statistics
        whole = found.splitting.new_zeros(len(found.splitting), 3, 3)
        row, column = torch.triu_indices(3, 3)
        whole[:, row, column] = whole[:, column, row] = found.splitting / found.views.clamp(min=1)[:, None]
        axes = self.axes()
        return -torch.linalg.eigvalsh((axes.mT @ whole @ axes).double())[:, 0].clamp(max=0)


class CrossTerm(Scored):
    """σ₁ of the cross term of position and colour, in units of the row's own size."""

    def scores(self) -> Tensor:
        return torch.linalg.matrix_norm(self.axes().mT @ self.statistics(cross=True).color_cross, ord=2)


class MaskedPixels(Scored):
    """Pixels of large error in the footprint (FastGS)."""

    @staticmethod
    def error(image: Tensor, target: Tensor) -> Tensor:
        found = absolute_error(image, target)
        return ((found - found.min()) > 0.1 * (found.max() - found.min())).float()

    def scores(self) -> Tensor:
        return self.statistics().error


for name, strategy in {
    "gain-error": FootprintError,
    "gain-opacity-error": OpacityError,
    "gain-front-error": FrontError,
    "gain-opacity": Opacity,
    "gain-gradient": Gradient,
    "gain-splitting": Splitting,
    "gain-cross": CrossTerm,
    "gain-mask": MaskedPixels,
}.items():
    register_density(name, strategy, GainOptions, help=strategy.__doc__)
