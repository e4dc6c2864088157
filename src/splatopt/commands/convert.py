"""``splatopt convert``: a scene file in another format."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from splatopt.commands.export import PAGE
from splatopt.commands.parsing import positional, run_command
from splatopt.commands.trimming import TrimOptions, trim
from splatopt.core.checks import InputError, say
from splatopt.raster.types import RenderOptions
from splatopt.report.splat_page import StartView, centered_view, write_splat_page
from splatopt.scene.scene_files import WRITTEN, load_scene, save_scene, written_ending
from splatopt.scene.similarity import Similarity


@dataclass(frozen=True)
class ConvertOptions:
    """Write a scene file in another format.

    One of .ply, .compressed.ply, .spz, .sog, .splat, or .html, a page that shows the scene without a network.
    """

    scene: Path
    """The scene to read: one of these but .html, or .ksplat; told by what it holds."""

    to: Annotated[Path, tyro.conf.arg(metavar="TO")]
    """The file to write, in the format of its ending; one that exists is left alone."""

    trimmed: Annotated[TrimOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(
        default_factory=TrimOptions
    )


def _convert(options: ConvertOptions) -> int:
    is_page = options.to.name.lower().endswith(PAGE)
    if not is_page and written_ending(options.to) is None:
        raise InputError(f"scenes are written as {', '.join((*WRITTEN, PAGE))}, got {options.to.name!r}")
    if options.to.exists():
        raise InputError(f"{options.to} exists already; give another path")
    warnings: list[str] = []
    read = load_scene(options.scene, warnings)
    cloud, way, said = trim(read, Similarity.staying(), options.trimmed)
    if is_page:
        cloud, view = centered_view(cloud, StartView.around(cloud))
        write_splat_page(options.to, cloud, view, RenderOptions(), options.scene.stem, warnings)
    else:
        save_scene(way.cloud(cloud), options.to, warnings)
    for warning in warnings:
        say(f"splatopt: warning: {warning}", file=sys.stderr)
    before, after = (file.stat().st_size for file in (options.scene, options.to))
    say(
        *said, f"{len(cloud):,} Gaussians written to {options.to}, {after:,} bytes where {options.scene} has {before:,}"
    )
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(positional(ConvertOptions), _convert, "convert", words)
