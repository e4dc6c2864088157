"""``splatopt bench``: its forms, their options, and what each does."""

from __future__ import annotations

import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from splatopt.commands.parsing import load_given, run_command
from splatopt.core.checks import InputError, say
from splatopt.runs.plugins import PluginFiles

if TYPE_CHECKING:
    from splatopt.bench.suite import Suite


@dataclass(frozen=True)
class RunOptions:
    """Run a suite: scenes × settings × optimizers × densities × seeds, one cell at a time, and sum it up.

    `splatopt bench suite.toml` runs a suite's file; `splatopt bench --scenes A B --optimizers adam tr2` needs
    none. What was interrupted goes on when the same command is given again, and what is done is kept.

    Other forms: `splatopt bench report OUT` writes tables and page again, `merge A B -o OUT` joins results,
    `verify RUN` runs a cell again and compares, `table PAGE` refreshes the tables in a Markdown file.
    Each explains itself with --help.
    """

    suite: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE.toml")] = None
    """The suite's file."""

    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder of the suite: its cells, results.json, tables and page; runs/bench-<suite> when None."""

    data: Path | None = None
    """Look for scenes in this folder, by the last part of their path."""

    only: tuple[str, ...] = ()
    """Names of scenes of the suite's file; the others are left out, and what is done of them is kept."""

    scenes: tuple[str, ...] = ()
    """Without a suite's file: folders of captures."""

    optimizers: tuple[str, ...] = ()
    """Without a suite's file: names of optimizers, each with its default options."""

    densities: tuple[str, ...] = ()
    """Without a suite's file: density strategies that every optimizer goes through, as in none adc mcmc."""

    seeds: int = 1
    """Without a suite's file: number of seeds, from 0."""

    steps: int | None = None
    """Without a suite's file: steps of every cell; the protocol's or `splatopt train`'s when None. Unit: steps."""

    protocol: str = "dense"
    """Without a suite's file: dense, sparse, long, fixed-time or minutes."""

    set: tuple[str, ...] = ()
    """Without a suite's file: further settings of every cell, as in --set max_side=240 init=random; the names are
    those of `splatopt train`'s options."""

    threads: int | None = None
    """Threads of renderer and optimizer, 0 for all cores; the suite's own when None. No number but the
    seconds depends on it."""

    instructions: str | None = None
    """Instruction set of every cell: avx512, avx2 or portable; the suite's own, else the fastest that the machine has,
    when None. The last bits of every number depend on it."""

    ray: str | None = None
    """Run cells side by side on Ray: a cluster's address, auto, local for this machine, or local:N for N of its
    processors. Each cell takes --threads processors, 1 unless given. Needs splatopt[ray]."""

    retry: bool = False
    """Run cells that failed once more; what they left is kept under another name."""

    lpips_weights: Path | None = None
    """Folder with the weights of LPIPS' networks; PyTorch's hub folder when None. Nothing is downloaded."""

    views: int = 2
    """Views of each scene that the page shows side by side at most; 0 for none. Unit: views."""

    plugins: PluginFiles = ()
    """A Python file that registers an optimizer, a loss or a reader of captures; give it once for each file. A suite's
    file names them as plugins = ["FILE.py"]."""


def _suite(options: RunOptions) -> Suite:
    """The suite's file, or one put together from the words."""
    from splatopt.bench.suite import make_suite, read_suite

    if options.only and options.suite is None:
        raise InputError("--only belongs to a suite's file; leave out of --scenes what is not to be run")
    loose = {"--scenes": options.scenes, "--optimizers": options.optimizers, "--set": options.set}
    loose |= {"--densities": options.densities}
    if options.suite is not None:
        given = [name for name, value in loose.items() if value]
        given += [name for name, at in (("--steps", options.steps is not None), ("--seeds", options.seeds != 1)) if at]
        given += ["--protocol"] if options.protocol != "dense" else []
        if given:
            raise InputError(
                f"{' and '.join(given)} cannot stand beside a suite's file; write them into {options.suite}"
            )
        return read_suite(options.suite, options.plugins).only(options.only)
    missing = [name for name in ("--scenes", "--optimizers") if not loose[name]]
    if missing:
        raise InputError(f"give a suite's file, or {' and '.join(missing)}")
    train = dict(_assignment(word) for word in options.set)
    if options.steps is not None:
        train["steps"] = options.steps
    values: dict[str, Any] = {
        "protocol": options.protocol,
        "seeds": options.seeds,
        "train": train,
        "scenes": [{"path": scene} for scene in options.scenes],
        "optimizers": [{"name": name} for name in options.optimizers],
        "densities": list(options.densities),
    }
    title = f"{', '.join(options.optimizers)} on {', '.join(Path(scene).name for scene in options.scenes)}"
    return make_suite(values, "the command line", Path(), title, options.plugins)


def _assignment(word: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as TOML writes it, or a plain word."""
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise InputError(f"--set wants NAME=VALUE, got {word!r}")
    name = name.replace("-", "_")
    try:
        return name, tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return name, text


def run(options: RunOptions) -> int:
    """Run a suite and write what it came to; 1 where a cell failed."""
    from splatopt.bench.session import Start, run_suite

    if options.views < 0:
        raise InputError(f"--views must be at least 0, got {options.views}")
    suite = _suite(options)
    out = options.out or Path("runs") / f"bench-{options.suite.stem if options.suite else 'session'}"
    command = shlex.join(["splatopt", "bench", *_typed_words(options)])
    start = Start(
        command,
        data=options.data,
        overrides=_given(threads=options.threads, instructions=options.instructions),
        retry=options.retry,
        lpips_weights=options.lpips_weights,
        views=options.views,
        ray=options.ray,
    )
    results = run_suite(suite, out, start, say=_tell)
    from splatopt.bench.output import write_output

    for path in write_output(results, out, pictures_from=[out]):
        say(f"written: {path}")
    for cell in results.failed:
        say(f"splatopt: cell {cell['name']} failed: {cell['failure']}", file=sys.stderr)
    return 1 if results.failed else 0


def _given(**settings: Any) -> dict[str, Any]:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}


def _typed_words(options: RunOptions) -> list[str]:
    """The words that say the same again."""
    words: list[str] = [str(options.suite)] if options.suite else []
    defaults = RunOptions()
    for name, value in vars(options).items():
        if name == "plugins":
            words += [word for one in value for word in ("--plugin", str(one))]
        if name in ("suite", "plugins") or value == getattr(defaults, name):
            continue
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, tuple) else (value,)
        words += [flag] if value is True else [flag, *(str(one) for one in values)]
    return words


def _tell(text: str) -> None:
    say(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class ReportOptions:
    """Write tables and page of results again."""

    results: Annotated[Path, tyro.conf.Positional]
    """A results.json, or a suite's folder."""

    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder to write to; the results' own when None."""

    reference: str | None = None
    """Label of the entry that others are compared with; the suite's own when None."""


def report(options: ReportOptions) -> int:
    """Write tables and page of results."""
    from splatopt.bench.output import write_output
    from splatopt.bench.results import load_results

    results = load_results(options.results)
    folder = options.results if options.results.is_dir() else options.results.parent
    for path in write_output(results, options.out or folder, pictures_from=[folder], reference=options.reference):
        say(f"written: {path}")
    return 0


@dataclass(frozen=True)
class MergeOptions:
    """Join the results of several suites into one report."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two or more: results.json files, or suites' folders."""

    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder for the joined results.json, tables and page; none may lie there yet."""


def merge(options: MergeOptions) -> int:
    """Join results."""
    from splatopt.bench.output import write_output
    from splatopt.bench.results import load_results
    from splatopt.bench.results import merge as join

    if len(options.results) < 2:
        raise InputError(f"merge wants at least two results, got {len(options.results)}")
    if (options.out / "results.json").exists():
        raise InputError(f"{options.out} holds results already, and nothing is overwritten; give another --out")
    results = join([load_results(path) for path in options.results])
    folders = [path if path.is_dir() else path.parent for path in options.results]
    for path in write_output(results, options.out, pictures_from=folders, keep=True):
        say(f"written: {path}")
    return 0


@dataclass(frozen=True)
class VerifyOptions:
    """Run a cell of a suite again and compare: its numbers must be the same to the bit."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the cell, below a suite's cells/."""

    data: Path | None = None
    """Folder that holds the scene, where it is no longer where it was."""

    threads: int | None = None
    """Threads, 0 for all cores; the cell's own when None. No number depends on them."""

    instructions: str | None = None
    """Instruction set: avx512, avx2 or portable, such as that of the machine that the cell was run on; the cell's own
    when None."""

    plugins: PluginFiles = ()
    """A plug-in file of the cell, where it is no longer where it was; give it once for each file."""


def verify(options: VerifyOptions) -> int:
    """Run a cell again; 1 where a number differs."""
    from splatopt.bench.verify import verify as again

    overrides = _given(threads=options.threads, instructions=options.instructions)
    found = again(options.run, _tell, data=options.data, overrides=overrides)
    if found.same:
        say(f"the same to the bit: {found.points} scored points and the trained scene")
    for difference in found.differences:
        say(f"differs: {difference}")
    for change in found.changes:
        say(f"changed since: {change}")
    if not found.same and not found.changes:
        say("machine and versions are the same, so that the numbers should be: this is a fault of splatopt")
    return 0 if found.same else 1


@dataclass(frozen=True)
class TableOptions:
    """Refresh the tables in a Markdown page from the results that it names.

    They stand between the lines <!-- bench table: RESULTS.json KINDS --> and <!-- end of table -->.
    """

    page: Annotated[Path, tyro.conf.Positional]
    """The page, such as docs/results/optim.md."""

    check: bool = False
    """Only say whether the tables are up to date, with exit code 1 where they are not."""


def table(options: TableOptions) -> int:
    """Refresh the tables of a page; 1 where they only were to be checked, and are stale."""
    from splatopt.bench.page_tables import refreshed
    from splatopt.core.checkpoint import replace_file

    text, wanted = refreshed(options.page)
    if text == wanted:
        say(f"the tables in {options.page} are up to date")
        return 0
    if options.check:
        say(f"the tables in {options.page} are stale; run: splatopt bench table {options.page}", file=sys.stderr)
        return 1
    # A page that is reached through a link is written where it lies.
    replace_file(options.page.resolve(), wanted.encode())
    say(f"written: {options.page}")
    return 0


FORMS: Mapping[str, tuple[type, Callable[[Any], int]]] = {
    "report": (ReportOptions, report),
    "merge": (MergeOptions, merge),
    "verify": (VerifyOptions, verify),
    "table": (TableOptions, table),
}
"""Forms of the command by their word; without one it runs a suite."""


def chosen(words: Sequence[str]) -> tuple[str, type, Callable[[Any], int], list[str]]:
    """Return the name, options, function and remaining words of the form that ``words`` ask for."""
    if words and words[0] in FORMS:
        options, call = FORMS[words[0]]
        return f"bench {words[0]}", options, call, list(words[1:])
    return "bench", RunOptions, run, list(words)


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    name, options, run, rest = chosen(words)
    return run_command(options, run, name, rest)
