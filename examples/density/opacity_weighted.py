"""What an opaque row's pixels disagree about counts more: gain's draw, weighted by opacity.

    splatopt train CAPTURE --plugin examples/density/opacity_weighted.py --density gain-opacity-gradient

A row is drawn in proportion to o · ‖Σ_p |∂L_p/∂m|‖, its opacity times the mean absolute gradient of its centre (AbsGS).
All else is gain's. Two children of a faint row change little; those of an opaque one can part what it covers.
Source: our own; LiteGS weighs an error in the footprint by opacity, 3DGS as MCMC draws by opacity alone.
"""

from torch import Tensor

from splatopt import register_density
from splatopt.density.gain import Gain, GainOptions


class OpacityGradient(Gain):
    """o times the mean absolute gradient of the centre."""

    def scores(self) -> Tensor:
        return self.objective.parameters["logit_opacities"].sigmoid() * super().scores()


register_density("gain-opacity-gradient", OpacityGradient, GainOptions, help=OpacityGradient.__doc__)
