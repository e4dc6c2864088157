"""``splatopt export``: the scene of a run, as a file that viewers and editors read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import tyro

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import positional, run_command
from splatopt.commands.trimming import TrimOptions, trim
from splatopt.core.camera import Camera
from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError, say
from splatopt.data import Capture
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.report.splat_page import StartView, write_splat_page
from splatopt.runs.folder import write_json
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.scene_files import WRITTEN, load_scene, save_scene, written_ending
from splatopt.scene.similarity import Similarity, robust_up, turn_between
from splatopt.train.run import Run

PAGE = ".html"
_CHECKED_VIEWS = 8
_ALIKE = 100.0
"""PSNR above which pictures differ by rounding alone, dB."""


class SceneFrame(Enum):
    """In which frame a scene is written."""

    CAPTURE = "capture"
    LOCAL = "local"


class Up(Enum):
    """Along which axis of the written scene up is."""

    AUTO = "auto"
    PLUS_X = "+x"
    MINUS_X = "-x"
    PLUS_Y = "+y"
    MINUS_Y = "-y"
    PLUS_Z = "+z"
    MINUS_Z = "-z"

    @property
    def axis(self) -> str:
        """The axis; for auto -y, which viewers of 3DGS' formats take for up."""
        return "-y" if self is Up.AUTO else self.value

    @property
    def direction(self) -> torch.Tensor:
        """A unit vector along it."""
        found = torch.zeros(3, dtype=torch.float64)
        found["xyz".index(self.axis[1])] = 1.0 if self.axis[0] == "+" else -1.0
        return found


@dataclass(frozen=True)
class ExportOptions:
    """Write the scene of a run for viewers and editors.

    As .ply in 3DGS' layout, .compressed.ply, .spz, .sog, .splat, or .html, a page that shows it without a network.
    """

    run: Path
    """Folder of the run."""

    scene: Path
    """The file to write, in the format of its ending; one that exists is left alone."""

    frame: SceneFrame = SceneFrame.CAPTURE
    """capture for the capture's own frame; local for the one that it was trained in, around the cameras, where float32
    loses nothing, with a JSON file beside the scene that says where that frame lies in the capture's."""

    up: Up | None = None
    """Turn the scene until what is up for its cameras lies along this axis; auto for -y, which viewers of these formats
    take for up. Where it lies in the capture's frame is said in a JSON file beside it."""

    trimmed: Annotated[TrimOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(
        default_factory=TrimOptions
    )

    cameras: bool = False
    """Write cameras.json as 3DGS has it beside the scene, in its frame; the first is a view to start from."""

    check: bool = False
    """Read the file back, render it from held-out views, and say its PSNR against the run's own renders."""


def _export(options: ExportOptions) -> int:
    is_page = options.scene.name.lower().endswith(PAGE)
    _check_paths(options, is_page)
    run = open_with_warnings(options.run)
    needs_capture = options.up is not None or options.cameras or options.check
    capture = run.refined(run.open_capture()) if needs_capture or is_page else None
    cameras = _cameras(capture)
    way = Similarity.to_world(run.frame) if options.frame is SceneFrame.CAPTURE else Similarity.staying()
    if options.up is not None:
        turned = robust_up([way.camera(camera) for camera in cameras])
        way = way.then(Similarity.rotating(turn_between(turned, options.up.direction)))
    cloud, way, said = trim(run.trained, way, options.trimmed)
    what = f"{len(cloud):,} Gaussians of step {run.steps} written to {options.scene}"
    if is_page:
        # In the training frame, where the near plane is one.
        view = StartView.of(cloud, cameras)
        look = RenderOptions(run.config.scene.background or (0.0, 0.0, 0.0), run.config.scene.footprint)
        write_splat_page(options.scene, cloud, view, look, run.folder.path.resolve().name, said)
        say(*said, f"{what}, a page that opens in a browser without a network")
    else:
        save_scene(
            way.cloud(cloud), options.scene, said, antialiased=run.config.scene.footprint is Footprint.ANTIALIASED
        )
        say(*said, f"{what}, {_where(options, run, way)}")
    if options.cameras:
        file = _cameras_file(options)
        listed = [_as_in_3dgs(index, way.camera(camera)) for index, camera in enumerate(cameras)]
        replace_file(file, json.dumps(listed, indent=2).encode())
        say(f"{len(cameras)} cameras written to {file}")
    if capture is not None and options.check:
        say(_checked(options.scene, run, capture, way))
    return 0


def _frame_file(options: ExportOptions) -> Path | None:
    """Return the file that says where the scene lies; None where it lies in the capture's own frame, or is a page."""
    is_placed = options.frame is SceneFrame.LOCAL or options.up is not None or options.trimmed.center
    if not is_placed or written_ending(options.scene) is None:
        return None
    # Files of one scene in several formats may lie side by side.
    return options.scene.with_name(options.scene.name.removesuffix(".ply") + ".frame.json")


def _cameras_file(options: ExportOptions) -> Path:
    return options.scene.with_name("cameras.json")


def _check_paths(options: ExportOptions, is_page: bool) -> None:
    """Raise InputError where the scene cannot be written as its ending says, or a file is there already."""
    if not is_page and written_ending(options.scene) is None:
        raise InputError(f"scenes are written as {', '.join((*WRITTEN, PAGE))}, got {options.scene.name!r}")
    if is_page and options.check:
        raise InputError("--check reads a file back, and pages are not read; leave it out, or check a .ply")
    placed = {"--up": options.up is not None, "--center": options.trimmed.center, "--cameras": options.cameras}
    placed["--frame local"] = options.frame is SceneFrame.LOCAL
    if is_page and any(placed.values()):
        named = " and ".join(name for name, given in placed.items() if given)
        raise InputError(f"a page shows the scene upright, in a frame of its own; leave out {named}, or write a .ply")
    for file in (options.scene, _frame_file(options), _cameras_file(options) if options.cameras else None):
        if file is not None and file.exists():
            raise InputError(f"{file} exists already; give another path")


def _where(options: ExportOptions, run: Run, way: Similarity) -> str:
    """Say in which frame the scene was written; where that is not the capture's own, a file says so as well."""
    file = _frame_file(options)
    if file is None:
        far = f", where float32 holds positions to {run.frame.spacing:.2g}" if run.frame.is_far else ""
        instead = "; --frame local loses nothing" if run.frame.is_far else ""
        return f"in the capture's own frame{far}{instead}"
    back = way.inverse.then(Similarity.to_world(run.frame))
    turned = {"rotation": back.rotation.tolist()} if back.turns else {}
    write_json(file, {"origin": back.shift.tolist(), "unit": back.scale, **turned})
    if options.up is None and not options.trimmed.center:
        return f"in the training frame: x = origin + unit * x_local, with both in {file}"
    up = f"with up along {options.up.axis}" if options.up else "centred"
    rotation = "rotation * " if turned else ""
    return f"{up}: in the capture's own frame x = origin + unit * {rotation}x_file, with these in {file}"


def _cameras(capture: Capture | None) -> list[Camera]:
    """Return a capture's cameras, those that were trained on first."""
    if capture is None:
        return []
    first = list(capture.split.train)
    return [
        capture.cameras[view] for view in (*first, *(v for v in range(len(capture.cameras)) if v not in set(first)))
    ]


def _as_in_3dgs(index: int, camera: Camera) -> dict[str, object]:
    return {
        "id": index,
        "img_name": Path(camera.name).stem,
        "width": camera.width,
        "height": camera.height,
        "position": camera.center.tolist(),
        "rotation": camera.world_to_camera[:3, :3].T.tolist(),
        "fy": camera.fy,
        "fx": camera.fx,
        # Beyond 3DGS, whose images are centred.
        "cx": camera.cx,
        "cy": camera.cy,
    }


def _checked(path: Path, run: Run, capture: Capture, way: Similarity) -> str:
    """Read a written scene back, and say how its renders agree with the run's."""
    read, objective = way.inverse.cloud(load_scene(path, [])), run.objective(capture)
    views = list(capture.split.test or capture.split.train)
    views = views[:: -(-len(views) // _CHECKED_VIEWS)]
    decibels = agreement(read, objective, views)
    how = f"{decibels:.2f} dB against the run's own renders" if decibels < _ALIKE else "the run's own renders"
    kind = "held-out" if capture.split.test else "training"
    return f"read back and rendered from {len(views)} {kind} views: {how}"


def agreement(cloud: GaussianCloud, objective: PhotometricObjective, views: Sequence[int]) -> float:
    """Return the PSNR of a cloud's renders against those of an objective's own, over all pixels of some views, dB."""
    errors = []
    for view in views:
        pictures = [
            objective.renderer.render(one, objective.cameras[view], objective.options).image.clamp(0, 1).double()
            for one in (cloud.to(objective.cloud.means.device), objective.cloud)
        ]
        errors.append(float((pictures[0] - pictures[1]).square().mean()))
    mean = sum(errors) / len(errors)
    return -10 * math.log10(mean) if mean else math.inf


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    # The parser takes -y for an option where it is a value.
    places = [place for place, word in enumerate(words) if word == "--up" and words[place + 1 : place + 2]]
    for place in reversed(places):
        words = [*words[:place], f"--up={words[place + 1]}", *words[place + 2 :]]
    return run_command(positional(ExportOptions), _export, "export", words)
