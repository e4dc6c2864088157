"""How well poses are found from photographs alone: `python -m benchmarks.structure_from_motion CAPTURE --out FOLDER`.

Poses of the photographs of a capture with a COLMAP model are found anew, as `splatopt poses` does, and compared with
the model's after a similarity alignment of the cameras' centres. Then a scene is trained on each, and both are scored
on the same held-out photographs. Prints one row of a Markdown table for each measure; what is in FOLDER already is
kept.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splatopt.data.capture import load_capture
from splatopt.data.structure_from_motion.capture import PoseOptions, pose_images
from splatopt.train.verb import train


@dataclass(frozen=True)
class PoseErrors:
    """Differences of cameras after alignment, one of each camera.

    Attributes:
        centers: Distances of the centres, over the largest distance of a true centre from their mean, (N,).
        rotations: Angles between the cameras, degrees, (N,).
    """

    centers: np.ndarray
    rotations: np.ndarray


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return scale, rotation (3, 3) and shift (3,) that take points (N, 3) to others with the least squared distance.

    Umeyama, Least-squares estimation of transformation parameters between two point patterns, 1991.
    """
    middle_source, middle_target = source.mean(axis=0), target.mean(axis=0)
    centered = source - middle_source
    left, sizes, right = np.linalg.svd((target - middle_target).T @ centered / len(source))
    mirror = np.diag([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left @ mirror @ right
    scale = float((sizes * np.diag(mirror)).sum() / (centered**2).sum(axis=1).mean())
    return scale, rotation, middle_target - scale * rotation @ middle_source


def pose_errors(found: np.ndarray, true: np.ndarray) -> PoseErrors:
    """Compare poses, world to camera, (N, 4, 4) each."""
    centers, true_centers = (-np.einsum("nij,ni->nj", poses[:, :3, :3], poses[:, :3, 3]) for poses in (found, true))
    scale, rotation, shift = similarity(centers, true_centers)
    extent = float(np.linalg.norm(true_centers - true_centers.mean(axis=0), axis=1).max())
    apart = np.linalg.norm(scale * centers @ rotation.T + shift - true_centers, axis=1) / extent
    turns = found[:, :3, :3] @ rotation.T @ true[:, :3, :3].transpose(0, 2, 1)
    # The sine of half the angle: the cosine has no digits left where turns are small.
    size = np.linalg.norm(turns - np.eye(3), axis=(1, 2)) / (2 * np.sqrt(2))
    return PoseErrors(apart, np.degrees(2 * np.arcsin(np.clip(size, 0, 1))))


def poses_by_name(folder: Path) -> dict[str, np.ndarray]:
    """Return the poses of a capture, world to camera, (4, 4) each, by the photographs' names."""
    return {camera.name: camera.world_to_camera.double().numpy() for camera in load_capture(folder).cameras}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0, help="for the poses; training takes one")
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--optimizer", default="learned")
    given = parser.parse_args()
    found = pose_images(given.capture / "images", given.out / "poses", PoseOptions(threads=given.threads))
    ours, theirs = poses_by_name(found.folder), poses_by_name(given.capture)
    names = sorted(ours.keys() & theirs.keys())
    errors = pose_errors(np.stack([ours[name] for name in names]), np.stack([theirs[name] for name in names]))
    print(f"| photographs with a pose | {len(found.model.names)} of {found.images} |")
    print(f"| points, reprojection error | {found.model.points:,}, {found.model.reprojection_error:.2f} pixels |")
    for label, values, unit in (("centres", 100 * errors.centers, "% of the extent"), ("turns", errors.rotations, "°")):
        print(f"| {label}: median, largest | {np.median(values):.3f}, {values.max():.3f} {unit} |")
    for label, folder in (("given", given.capture), ("found", found.folder)):
        result = train(
            folder,
            downscale=given.downscale,
            optimizer=given.optimizer,
            steps=given.steps,
            threads=1,
            out=given.out / label,
            resume=(given.out / label).exists(),
        )
        print(f"| {result.after.subset} PSNR with the {label} poses | {result.after.psnr:.2f} dB |")


if __name__ == "__main__":
    main()
