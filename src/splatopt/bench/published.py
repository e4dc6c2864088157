"""Numbers that others published, which a report shows beside ours and never as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.core.reading import DamagedFileError, read_json
from splatopt.core.typed import Fields, check_names, field_names, read_dataclass

FORMAT, VERSION = "splatopt-published", 1
MARK = "published, not run by us"
"""Stands in every row of others' numbers."""

_FILE = "published.json"
_MAX_BYTES = 1 << 20
_MAX_ROWS = 1000


@dataclass(frozen=True)
class Work:
    """Where a number was published.

    Attributes:
        title: Title of the paper or of the software.
        arxiv: Its number there; empty where it has none.
        repository: OWNER/NAME on GitHub; empty where it has none.
    """

    title: str
    arxiv: str = ""
    repository: str = ""

    def __post_init__(self) -> None:
        """Refuse a work that cannot be looked up."""
        if not self.title or not (self.arxiv or self.repository):
            raise InputError("a work needs its title, and its number at arXiv or its repository")

    def __str__(self) -> str:
        """The work as a list of references names it."""
        places = (f"arXiv:{self.arxiv}" if self.arxiv else "", self.repository)
        return f"{self.title} ({', '.join(filter(None, places))})"


@dataclass(frozen=True)
class PublishedRow:
    """What one method came to.

    Attributes:
        method: What the literature calls it.
        source: Key of the work that published it.
        scene: Name of the scene; empty for the mean over the scenes of the set.
        steps: Optimizer steps; None where they are not said. Unit: steps.
        psnr: Unit: dB.
        ssim: In [-1, 1].
        lpips: At least 0.
        lpips_net: Network of ``lpips``, vgg or alex; empty where it is not said.
        gaussians: Rows at the end.
        seconds: Of training, on ``hardware``.
        hardware: Empty where it is not said.
        note: What else has to be known to compare it.
    """

    method: str
    source: str
    scene: str = ""
    steps: int | None = None
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    lpips_net: str = ""
    gaussians: int | None = None
    seconds: float | None = None
    hardware: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a row that says nothing, or what no run can come to."""
        if not self.method or not self.source:
            raise InputError("a published row needs a method and a source")
        if self.psnr is None and self.ssim is None:
            raise InputError(f"the published row of {self.method} has neither psnr nor ssim")
        if self.lpips_net not in ("", "vgg", "alex"):
            raise InputError(f"lpips_net must be vgg or alex, got {self.lpips_net!r}")
        for name, low, high in (
            ("psnr", 0, 100),
            ("ssim", -1, 1),
            ("lpips", 0, 2),
            ("steps", 1, 1e9),
            ("gaussians", 1, 1e12),
            ("seconds", 0, 1e9),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} of {self.method} must lie between {low} and {high:g}, got {value}")


@dataclass(frozen=True)
class PublishedSet:
    """Rows of one data set under one protocol; numbers of different sets are not comparable.

    Attributes:
        key: What suites call it.
        dataset: The data set in words.
        protocol: How views were held out, and which photographs were used.
        scenes: Names of its scenes; a mean is over all of them.
        rows: What methods came to.
        works: By key, the works that the rows name.
    """

    key: str
    dataset: str
    protocol: str
    scenes: tuple[str, ...]
    rows: tuple[PublishedRow, ...] = ()
    works: Mapping[str, Work] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the set as JSON values, as :meth:`from_json` reads it."""
        return {
            "key": self.key,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "scenes": list(self.scenes),
            "rows": [{name: one for name, one in asdict(row).items() if one not in (None, "")} for row in self.rows],
            "sources": {key: asdict(work) for key, work in self.works.items()},
        }

    @classmethod
    def from_json(cls, values: object, where: str) -> PublishedSet:
        """Return the set that :meth:`to_json` gave.

        Raises:
            InputError: It is not of that form, or a row names no source of the set.
        """
        given = Fields(values, where)
        works = _works(given.object("sources"))
        scenes = tuple(given.texts("scenes"))
        rows = []
        for number, one in enumerate(given.entries("rows", _MAX_ROWS), start=1):
            at = f"{where}: row {number}"
            row = read_dataclass(one, PublishedRow, "entry", at)
            check_names([row.source], works, "source", at)
            check_names([row.scene] if row.scene else [], scenes, "scene", at)
            rows.append(row)
        named = {row.source for row in rows}
        kept = {key: work for key, work in works.items() if key in named}
        return cls(given.text("key"), given.text("dataset"), given.text("protocol"), scenes, tuple(rows), kept)

    def of(self, scene: str) -> list[PublishedRow]:
        """Rows of a scene; of the mean where it is empty."""
        return [row for row in self.rows if row.scene == scene]


def _works(sources: Fields) -> dict[str, Work]:
    return {
        key: read_dataclass(value, Work, "entry", f"{sources.where}: {key}") for key, value in sources.values.items()
    }


def read_published(path: Path) -> dict[str, PublishedSet]:
    """Read a file of published numbers.

    Args:
        path: ``results/published.json``, or another of its form.

    Returns:
        The sets by their keys.

    Raises:
        InputError: It cannot be read or is not of this form; names the place.
    """
    try:
        values = read_json(path, _MAX_BYTES)
    except DamagedFileError as error:
        raise InputError(f"the published numbers {error}") from error
    file = Fields(values, str(path))
    if file.values.get("format") != FORMAT or file.values.get("version") != VERSION:
        raise InputError(f"{path} is no file of published numbers that this splatopt reads (form {VERSION})")
    sources = file.object("sources").values
    sets = file.object("sets").values
    found = {}
    for key, one in sets.items():
        given = Fields(one, f"{path}: {key}")
        check_names(given.values, field_names(PublishedSet) - {"key", "works"}, "entry", given.where)
        found[key] = PublishedSet.from_json({**given.values, "key": key, "sources": sources}, given.where)
    return found


def find_published(keys: Sequence[str], folder: Path, where: str) -> tuple[PublishedSet, ...]:
    """Return the sets that a suite names.

    Args:
        keys: Their keys.
        folder: The suite's; the file lies there, in ``results`` beside it, or in ``results`` here.
        where: The suite, for messages.

    Raises:
        InputError: There is no file, or no such set in it.
    """
    places = [folder / _FILE, folder.parent / "results" / _FILE, Path("results") / _FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        tried = ", ".join(dict.fromkeys(map(str, places)))
        raise InputError(f"{where}: published names numbers of a {_FILE}, and there is none at {tried}")
    sets = read_published(path)
    check_names(keys, sets, "published set", where)
    return tuple(sets[key] for key in keys)
