"""Cells that may be compared, and what is measured of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from splatopt.bench.published import PublishedSet
from splatopt.bench.records import CellRecord
from splatopt.bench.results import Results
from splatopt.bench.statistics import summary
from splatopt.bench.tables import Number, Row, bold_best

PointNumber = Literal["step", "seconds", "psnr", "ssim", "gaussians", "peak_memory_mb"]

Cells = Sequence[CellRecord]


@dataclass(frozen=True)
class Group:
    """Cells that may be compared: one protocol and one setting.

    Attributes:
        protocol: Name of the protocol.
        setting: Name of the setting.
        cells: Those that are done.
        reference: Label that others are compared with; the first label where the results' own has no cell here.
        published: Numbers of others that its cells may be shown beside.
        failed: Label and scene of each cell that did not come to its end.
    """

    protocol: str
    setting: str
    cells: Cells
    reference: str
    published: tuple[PublishedSet, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Protocol and setting in words."""
        return ", ".join(part for part in (self.protocol, self.setting) if part)

    @property
    def scenes(self) -> list[str]:
        """Scenes in the order of the results."""
        return list(dict.fromkeys(cell["scene"] for cell in self.cells))

    @property
    def labels(self) -> list[str]:
        """Optimizer entries in the order of the results."""
        return list(dict.fromkeys(cell["label"] for cell in self.cells))

    def of(self, label: str, scene: str | None = None) -> list[CellRecord]:
        """Cells of one label, on one scene or on all."""
        return [cell for cell in self.cells if cell["label"] == label and scene in (None, cell["scene"])]

    def number(self, label: str, scene: str, measure: Measure) -> Number | None:
        """Mean and deviation of a number over a label's seeds on a scene; seeds that failed count as missing."""
        found, failed = mean_number(self.of(label, scene), measure), self.failed.count((label, scene))
        return replace(found, asked=found.count + failed) if found and failed else found

    def span(self, scene: str) -> tuple[int, int]:
        """Steps from which and up to which all cells on a scene were scored."""
        cells = [cell for cell in self.cells if cell["scene"] == scene]
        starts = [next((point["step"] for point in cell["points"] if point["step"] >= 1), 1) for cell in cells]
        return max(starts), min(cell["points"][-1]["step"] for cell in cells)

    def target(self, scene: str) -> float | None:
        """Mean PSNR of the reference at its end on a scene, dB."""
        found = summary([cell["points"][-1]["psnr"] for cell in self.of(self.reference, scene)])
        return found.mean if found else None


def groups(results: Results, reference: str | None = None) -> list[Group]:
    """Return the groups of comparable cells, in the order of the results.

    Args:
        results: The cells.
        reference: Label to compare with in place of the results' own.
    """
    sets = _published(results)
    keys = dict.fromkeys((cell["protocol"]["name"], cell["setting"]) for cell in results.done)
    found = []
    for protocol, setting in keys:
        cells = [c for c in results.done if (c["protocol"]["name"], c["setting"]) == (protocol, setting)]
        labels = [cell["label"] for cell in cells]
        wanted = reference or results.reference
        named = dict.fromkeys(key for cell in cells if "published" in cell for key in cell["published"]["sets"])
        shown = tuple(sets[key] for key in named if key in sets)
        broken = [c for c in results.failed if (c["protocol"]["name"], c["setting"]) == (protocol, setting)]
        failed = tuple((cell["label"], cell["scene"]) for cell in broken)
        found.append(Group(protocol, setting, cells, wanted if wanted in labels else labels[0], shown, failed))
    return found


def _published(results: Results) -> dict[str, PublishedSet]:
    """The published sets that the results' suites brought along, by key."""
    found: dict[str, PublishedSet] = {}
    for source in results.sources:
        suite = source.get("suite")
        sets = suite.get("published", []) if isinstance(suite, dict) else []
        for number, one in enumerate(sets if isinstance(sets, list) else [], start=1):
            read = PublishedSet.from_json(one, f"published set {number} of the results")
            found.setdefault(read.key, read)
    return found


@dataclass(frozen=True)
class Measure:
    """A number of a cell.

    Attributes:
        name: Heading, with its unit.
        form: How it is written.
        better: 1 where higher is better, -1 where lower is, 0 where neither.
        of: Gives it; None where the cell has none.
    """

    name: str
    form: str
    better: int
    of: Callable[[CellRecord], float | None]


def last(name: PointNumber) -> Callable[[CellRecord], float | None]:
    """Return what gives a number of a cell at its last step."""
    return lambda cell: cell["points"][-1][name]


def _lpips(network: str) -> Callable[[CellRecord], float | None]:
    return lambda cell: cell.get("lpips", {}).get(network)


PSNR = Measure("PSNR, dB", ".2f", 1, last("psnr"))
SSIM = Measure("SSIM", ".4f", 1, last("ssim"))
LPIPS = {network: Measure(f"LPIPS {network}", ".4f", -1, _lpips(network)) for network in ("vgg", "alex")}
GAUSSIANS = Measure("Gaussians", ",.0f", 0, last("gaussians"))
SECONDS = Measure("Seconds of training", ",.1f", 0, last("seconds"))
MEMORY = Measure("Peak memory, MB", ",.0f", -1, last("peak_memory_mb"))


def mean_number(cells: Cells, measure: Measure) -> Number | None:
    """Mean and deviation of a number over seeds."""
    values = [value for cell in cells if (value := measure.of(cell)) is not None]
    found = summary(values)
    return Number(found.mean, measure.form, found.sd, found.count) if found else None


def measured_rows(group: Group, scene: str, measures: Sequence[Measure]) -> list[Row]:
    """Return the rows of a scene's table, the best marked; labels of which no number is known are left out.

    Args:
        group: Comparable cells.
        scene: One of its scenes.
        measures: The columns.
    """
    rows = [(label, [group.number(label, scene, one) for one in measures]) for label in group.labels]
    rows = [(label, numbers) for label, numbers in rows if any(numbers)]
    bold_best(rows, [measure.better for measure in measures])
    return rows
