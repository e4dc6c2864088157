"""What the theory of neural fields predicts, measured on small ones: conditioning, density of products, spectra."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.bounds import bounds
from splatopt.core.checks import InputError
from splatopt.core.files import make_folder
from splatopt.core.typed import field_names as field_names_of
from splatopt.curvature.estimators import rademacher
from splatopt.curvature.spectrum import (
    RitzPairs,
    condition_number,
    dense_hessian,
    equilibrated,
    hessian_operator,
    jacobi,
    preconditioned,
    product_density,
    spectral_pairs,
)
from splatopt.fields.image import ImageTask
from splatopt.fields.networks import Architecture
from splatopt.fields.registry import field_names, find_field, make_field
from splatopt.fit.options import ActivationConstants
from splatopt.report.charts import Series, line_chart
from splatopt.report.page import chart_card, two_columns, write_page
from splatopt.runs.folder import write_json

_BINS = 81
_MAX_SEED = 2**62


@dataclass(frozen=True)
class DiagnosePlan(ActivationConstants):
    """What is measured, on which small fields."""

    fields: tuple[str, ...] = field_names()
    """Names of fields."""

    width: int = 16
    """Features of each layer. Unit: features."""

    depth: int = 1
    """Hidden layers. Unit: layers."""

    side: int = field(default=16, metadata=bounds(2))
    """The synthetic image that is fitted has so many pixels along each edge. Unit: pixels."""

    draws: int = field(default=10, metadata=bounds(1))
    """Starts, each with an image of its own. Unit: starts."""

    pixels: int = field(default=1, metadata=bounds(1))
    """Pixels of the minibatch whose Hv is looked at. Unit: pixels."""

    lanczos_steps: int = field(default=60, metadata=bounds(2))
    """Steps of Lanczos for the spectrum. Unit: steps."""

    seed: int = field(default=0, metadata=bounds(0, _MAX_SEED))
    """Seed of the first start; the others follow."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.fields:
            raise InputError(f"--fields names no field; known: {', '.join(field_names())}")
        super().__post_init__()
        if self.pixels > self.side**2:
            raise InputError(f"--pixels must be at most {self.side**2}, the pixels of the image, got {self.pixels}")
        taken = {name for field in self.fields for name in find_field(field).constants}
        for name in self.given:
            if name not in taken:
                raise InputError(f"--{name} is of none of the fields {', '.join(self.fields)}; leave it out")

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON values, with the constants that were given under ``constants``."""
        constants = field_names_of(ActivationConstants)
        others = {name: value for name, value in asdict(self).items() if name not in constants}
        return others | {"constants": self.given}


@dataclass(frozen=True)
class Conditioning:
    """One draw of one field.

    Attributes:
        none: κ of H.
        jacobi: κ of D_J^-½HD_J^-½.
        equilibrated: κ of D_E^-½HD_E^-½.
        density: Share of entries of Hv above 1e-6 of the largest, v random signs.
    """

    none: float
    jacobi: float
    equilibrated: float
    density: float


@dataclass(frozen=True)
class Diagnosis:
    """All draws of one field.

    Attributes:
        field: Its name.
        parameters: Numbers that are trained.
        draws: One entry per start.
        spectrum: Ritz pairs of the first start's Hessian.
    """

    field: str
    parameters: int
    draws: tuple[Conditioning, ...]
    spectrum: tuple[RitzPairs, ...]

    def median(self, name: str) -> float:
        """Return the median over the draws of one measure."""
        return statistics.median(getattr(draw, name) for draw in self.draws)

    def below(self, *names: str) -> int:
        """Return in how many draws each of these measures was below the next."""
        values = [[getattr(draw, name) for name in names] for draw in self.draws]
        return sum(all(low < high for low, high in itertools.pairwise(draw)) for draw in values)


def synthetic_image(side: int, generator: torch.Generator) -> Tensor:
    """Return a grey image of eight waves of random direction and length, (side, side, 1), float64 in [0, 1]."""
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    waves = torch.rand(8, 3, generator=generator, dtype=torch.float64) * 12 - 6
    image = torch.sin(waves[:, 0, None, None] * x + waves[:, 1, None, None] * y + waves[:, 2, None, None]).sum(dim=0)
    low, high = image.amin(), image.amax()
    return ((image - low) / (high - low))[..., None]


def diagnose_field(plan: DiagnosePlan, name: str) -> Diagnosis:
    """Measure one field.

    Args:
        plan: What is measured.
        name: The field.

    Raises:
        InputError: The field is unknown, or too large for a dense Hessian.
    """
    draws = []
    spectrum: list[RitzPairs] = []
    size = 0
    for seed in range(plan.seed, plan.seed + plan.draws):
        generator = torch.Generator().manual_seed(seed)
        small = make_field(name, Architecture(2, 1, plan.width, plan.depth), generator, **plan.of_field(name)).double()
        task = ImageTask(small, synthetic_image(plan.side, generator))
        hessian = dense_hessian(task, torch.arange(task.size))
        pixels = torch.randperm(task.size, generator=generator)[: plan.pixels]
        product, size = hessian_operator(task, pixels)
        density = product_density(product(rademacher(torch.empty(size, dtype=torch.float64), generator)))
        by_jacobi, by_rows = (preconditioned(hessian, rule(hessian)) for rule in (jacobi, equilibrated))
        kappas = [condition_number(matrix) for matrix in (hessian, by_jacobi, by_rows)]
        draws.append(Conditioning(kappas[0], kappas[1], kappas[2], density))
        if not spectrum:
            everything = torch.arange(task.size)
            spectrum = spectral_pairs(task, everything, steps=plan.lanczos_steps, probes=8, generator=generator)
    return Diagnosis(name, size, tuple(draws), tuple(spectrum))


def write_diagnosis(folder: Path, plan: DiagnosePlan, found: Sequence[Diagnosis]) -> Path:
    """Write ``diagnosis.json`` and ``diagnosis.html``, a table and a plot per field; returns the page.

    Args:
        folder: Made if absent; must hold no diagnosis.
        plan: What was measured.
        found: The measurements.

    Raises:
        InputError: The folder holds one already.
    """
    check_free(folder)
    make_folder(folder)
    draws = {one.field: [asdict(draw) for draw in one.draws] for one in found}
    write_json(folder / "diagnosis.json", {"plan": finite_values(plan.to_json()), "draws": finite_values(draws)})
    sections = [
        "<h1>Curvature of neural fields at their start</h1>",
        f'<p class="lead">Medians of {plan.draws} starts, {plan.side}×{plan.side} pixels, width {plan.width}, '
        f"depth {plan.depth}; Hv on {plan.pixels} of the pixels.</p>",
    ]
    for one in found:
        cards = f"{two_columns(summary(one))}{_chart(one)}"
        sections.append(
            f'<h2>{one.field}, {one.parameters:,} parameters</h2>\n<section class="charts">{cards}</section>'
        )
    return write_page(folder / "diagnosis.html", "Curvature of neural fields", sections)


def check_free(folder: Path) -> None:
    """Raise InputError where ``folder`` holds a diagnosis already."""
    if (folder / "diagnosis.json").exists():
        raise InputError(f"{folder} holds a diagnosis already; give another folder with --out")


def summary(one: Diagnosis) -> dict[str, str]:
    """Return a field's measures by name, as they are shown."""
    count = len(one.draws)
    return {
        "κ of H": f"{one.median('none'):.3g}",
        "κ, Jacobi": f"{one.median('jacobi'):.3g} (below none in {one.below('jacobi', 'none')} of {count})",
        "κ, equilibrated": (
            f"{one.median('equilibrated'):.3g} (below none in {one.below('equilibrated', 'none')}, below Jacobi in "
            f"{one.below('equilibrated', 'jacobi')}, in that order in {one.below('equilibrated', 'jacobi', 'none')} of "
            f"{count})"
        ),
        "density of Hv": f"{one.median('density'):.2f}",
    }


def spectral_density(pairs: Sequence[RitzPairs]) -> tuple[list[float], list[float]]:
    """Return the share of eigenvalues per bin of sign(λ)·log₁₀(1 + 10⁶|λ|/λmax), from Ritz pairs of several starts.

    Returns:
        Centres of the bins, and shares.
    """
    values, weights = torch.cat([one.values for one in pairs]), torch.cat([one.weights for one in pairs])
    largest = float(values.abs().max()) or 1.0
    place = values.sign() * torch.log10(1 + 1e6 * values.abs() / largest)
    edges = torch.linspace(-6.5, 6.5, _BINS + 1, dtype=torch.float64)
    counts = torch.histogram(place, edges, weight=weights / len(pairs)).hist
    return ((edges[1:] + edges[:-1]) / 2).tolist(), counts.tolist()


def _chart(one: Diagnosis) -> str:
    centres, shares = spectral_density(one.spectrum)
    heading = f"Share of eigenvalues, {one.field}"
    label = "sign(λ)·log₁₀(1 + 10⁶|λ|/λmax)"
    return chart_card(heading, line_chart(heading, label, [Series("", centres, shares)]))


def finite_values(value: object) -> object:
    """Return values as JSON holds them, which has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: finite_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
