"""COLMAP's stages through pycolmap: cameras, features, matches, models. Each goes on where an earlier start was ended.

What is done lies in a database, which COLMAP keeps whole; the models are found anew at each start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pycolmap

from splatopt.core.files import discard, partial_path, whole_file

Tell = Callable[[str, int, int], None]
"""Takes the name of a stage, what is done of it, and what there is to do."""

DATABASE = "database.db"
"""What is done lies in it: cameras, features and matches."""

MAX_FEATURES = 4096
"""Of each photograph; the time to compare two grows with the square of it."""

_SHARED_FROM = 10
"""Photographs of one camera from which on OPENCV's lens is fitted (two focal lengths, two radial and two tangential
terms); fewer say too little of it, and SIMPLE_RADIAL's (one and one) is."""

_SIFT_BYTES_PER_PIXEL = 300
"""Memory that a thread takes to find features, measured with pycolmap 4.2; the first octave is of twice the size."""

_PAIRS_AT_ONCE = 256
_IMAGES_PER_THREAD = 4


@dataclass(frozen=True)
class Job:
    """What is to be done in a folder that holds ``images``.

    Attributes:
        names: The name in the capture of each file in ``images``.
        cameras: Files that share a camera; every file is in one of these.
        pairs: Files that are compared.
        max_side: Photographs are shrunk to it before features are looked for, pixels.
        seed: Of everything that is drawn.
        threads: At least 1.
    """

    names: dict[str, str]
    cameras: tuple[tuple[str, ...], ...]
    pairs: tuple[tuple[str, str], ...]
    max_side: int
    seed: int
    threads: int

    def write(self, path: Path) -> None:
        """Write the job, whole or not at all."""
        with whole_file(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Job:
        """Return the job that :meth:`write` wrote."""
        values = json.loads(path.read_bytes())
        values["cameras"] = tuple(tuple(group) for group in values["cameras"])
        values["pairs"] = tuple((one, other) for one, other in values["pairs"])
        return cls(**values)


@dataclass(frozen=True)
class FoundModel:
    """One model that was found.

    Attributes:
        names: The photographs with a pose, by their names in the capture.
        points: Number of points.
        reprojection_error: Mean distance between points and the features that they explain, pixels.
        cameras: Number of cameras.
    """

    names: tuple[str, ...]
    points: int
    reprojection_error: float
    cameras: int


def register_cameras(job: Job, folder: Path) -> None:
    """Make the database with every photograph and its camera, unless it is there."""
    database = folder / DATABASE
    if database.exists():
        return
    partial = partial_path(database)
    for path in (partial, *(partial.with_name(partial.name + end) for end in ("-wal", "-shm", "-journal"))):
        discard(path)
    pycolmap.Database.open(partial).close()
    for group in job.cameras:
        options = pycolmap.ImageReaderOptions()
        options.camera_model = "OPENCV" if len(group) >= _SHARED_FROM else "SIMPLE_RADIAL"
        pycolmap.import_images(partial, folder / "images", pycolmap.CameraMode.SINGLE, list(group), options)
    partial.replace(database)


def extract_features(job: Job, folder: Path, tell: Tell) -> None:
    """Find the features (SIFT) of every photograph that has none yet."""
    database = folder / DATABASE
    with pycolmap.Database.open(database) as opened:
        left = [image.name for image in opened.read_all_images() if not opened.exists_descriptors(image.image_id)]
        threads = _threads_in_memory(opened.read_all_cameras(), job)
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.num_threads, options.use_gpu = job.max_side, threads, False
    options.sift.max_num_features = MAX_FEATURES
    total, chunk = len(job.names), _IMAGES_PER_THREAD * threads
    done = total - len(left)
    tell("features", done, total)
    for names in _chunks(sorted(left), chunk):
        pycolmap.extract_features(
            database, folder / "images", list(names), extraction_options=options, device=pycolmap.Device.cpu
        )
        done += len(names)
        tell("features", done, total)


def _threads_in_memory(cameras: Sequence[pycolmap.Camera], job: Job) -> int:
    """Return how many of the threads may look for features at once, so that half of the free memory is enough."""
    sizes = [(camera.width, camera.height) for camera in cameras]
    pixels = max((min(1.0, job.max_side / max(size)) ** 2 * size[0] * size[1] for size in sizes), default=1.0)
    fitting = psutil.virtual_memory().available / 2 / (_SIFT_BYTES_PER_PIXEL * pixels)
    return max(1, min(job.threads, int(fitting)))


def match_features(job: Job, folder: Path, tell: Tell) -> None:
    """Compare every pair that was not compared yet, and keep the matches that one motion of the camera explains."""
    database = folder / DATABASE
    with pycolmap.Database.open(database) as opened:
        numbers = {image.name: image.image_id for image in opened.read_all_images()}
        known = [pair for pair in job.pairs if pair[0] in numbers and pair[1] in numbers]
        left = [
            (one, other) for one, other in known if not opened.exists_two_view_geometry(numbers[one], numbers[other])
        ]
    matching, pairing = pycolmap.FeatureMatchingOptions(), pycolmap.ImportedPairingOptions()
    matching.num_threads, matching.use_gpu = job.threads, False
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = job.seed
    pairing.match_list_path = str(folder / "pairs.txt")
    done = len(known) - len(left)
    tell("matches", done, len(known))
    for pairs in _chunks(left, _PAIRS_AT_ONCE):
        (folder / "pairs.txt").write_text("".join(f"{one} {other}\n" for one, other in pairs), encoding="ascii")
        pycolmap.match_image_pairs(database, matching, pairing, verification, device=pycolmap.Device.cpu)
        done += len(pairs)
        tell("matches", done, len(known))


def find_models(job: Job, folder: Path, tell: Tell) -> None:
    """Find poses and points one photograph after the other, and write the largest model and what was found.

    The model goes to ``model``, with the names of the capture, and then ``models.json`` says what there is.
    """
    models, model = folder / "models", folder / "model"
    for path in (models, model):
        discard(path)
        path.mkdir()
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = job.threads, job.seed
    options.mapper.num_threads, options.mapper.random_seed = job.threads, job.seed
    options.triangulation.random_seed = job.seed
    total, posed = len(job.names), 0

    def count() -> None:
        nonlocal posed
        posed = min(posed + 1, total)
        tell("poses", posed, total)

    tell("poses", 0, total)
    found = pycolmap.incremental_mapping(
        folder / DATABASE, folder / "images", models, options, next_image_callback=count
    )
    ordered = sorted(found.values(), key=lambda one: (-one.num_reg_images(), -one.num_points3D()))
    described = [asdict(_described(one, job)) for one in ordered]  # before images have the capture's names
    if ordered:
        for image in ordered[0].images.values():
            image.name = job.names[image.name]
        ordered[0].write(model)
    with whole_file(folder / "models.json") as file:
        file.write(json.dumps(described).encode())
    discard(models)


def _described(model: pycolmap.Reconstruction, job: Job) -> FoundModel:
    names = sorted(model.images[number].name for number in model.reg_image_ids())
    return FoundModel(
        tuple(job.names[name] for name in names),
        model.num_points3D(),
        float(model.compute_mean_reprojection_error()),
        model.num_cameras(),
    )


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
