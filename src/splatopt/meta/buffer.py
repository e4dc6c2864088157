"""The checkpoint buffer: scenes on their way, from which episodes go on.

Episode states are kept by how deep they are, in steps taken, so that an episode can begin from a young one as likely as
from an old one. One that has grown into a deeper class that is full pushes out the one there longest, but seldom;
otherwise it leaves itself, so that the deep ones can grow deeper than they would by queueing.

Source: Pearl et al. 2026, "Learn2Splat" (20 states, the oldest leaves); the classes of depth are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.core.state import OptimizerState
from splatopt.core.typed import Fields
from splatopt.meta.episode import EpisodeState
from splatopt.meta.inner import InnerState
from splatopt.meta.tasks import Augmentation, bind
from splatopt.raster.renderer import Renderer
from splatopt.scene.gaussians import GaussianCloud

DEPTHS = (40, 400)
"""Where a deeper class begins. Unit: steps."""


@dataclass
class CheckpointBuffer:
    """Episode states by depth.

    Attributes:
        capacity: Situations in each class at most.
        deepest: Steps after which one is not kept any longer.
        eviction: Probability that a newcomer pushes out the one longest there, where its class is full.
        classes: The situations, in the order in which they came.
    """

    capacity: int = 8
    deepest: int = 6000
    eviction: float = 0.2
    classes: list[list[EpisodeState]] = field(default_factory=lambda: [[] for _ in range(len(DEPTHS) + 1)])

    def __len__(self) -> int:
        return sum(len(kept) for kept in self.classes)

    def put(self, episode_state: EpisodeState, came_from: int | None, generator: torch.Generator) -> bool:
        """Keep ``episode_state``; False where it was not kept.

        Args:
            episode_state: What to keep.
            came_from: The class that it was taken from, None for a new one.
            generator: Decides whether a newcomer to a full class is let in.
        """
        steps = episode_state.state.steps
        if steps > self.deepest:
            return False
        place = sum(steps >= depth for depth in DEPTHS)
        kept = self.classes[place]
        if len(kept) >= self.capacity:
            is_newcomer = place != came_from
            if is_newcomer and place > 0 and float(torch.rand((), generator=generator)) >= self.eviction:
                return False
            kept.pop(0)
        kept.append(episode_state)
        return True

    def take(self, generator: torch.Generator) -> tuple[EpisodeState, int]:
        """Take out one episode state, from each class that holds any equally likely; return it and its class."""
        filled = [place for place, kept in enumerate(self.classes) if kept]
        place = filled[int(torch.randint(len(filled), (), generator=generator))]
        kept = self.classes[place]
        return kept.pop(int(torch.randint(len(kept), (), generator=generator))), place

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
        """Return all tensors by name, and one JSON record for each episode state."""
        tensors: dict[str, Tensor] = {}
        records: list[dict[str, object]] = []
        for place, kept in enumerate(self.classes):
            for episode_state in kept:
                prefix = f"{len(records)}."
                tensors |= {prefix + name: value for name, value in episode_state_tensors(episode_state).items()}
                records.append(episode_state_record(episode_state) | {"class": place})
        return tensors, records

    def load(
        self,
        tensors: Mapping[str, Tensor],
        records: Sequence[Fields],
        renderer: Renderer,
        latent_width: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Go on from what :meth:`state` gave."""
        self.classes = [[] for _ in range(len(DEPTHS) + 1)]
        for number, record in enumerate(records):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.classes[record.count("class", len(DEPTHS))].append(
                restored(own, record, renderer, latent_width, device)
            )


def episode_state_tensors(episode_state: EpisodeState) -> dict[str, Tensor]:
    """Return the tensors of one episode state by name."""
    cloud = {f"cloud.{name}": value for name, value in episode_state.task.objective.parameters.items()}
    return cloud | episode_state.state.tensors() | {"near": episode_state.near}


def episode_state_record(episode_state: EpisodeState) -> dict[str, object]:
    """Return what JSON must hold of one episode state."""
    task = episode_state.task
    return {
        "scene": task.scene,
        "inputs": list(task.inputs),
        "targets": list(task.targets),
        "view_batch": task.view_batch,
        "augmentation": asdict(task.augmentation),
        "horizon": episode_state.horizon,
    } | episode_state.state.scalars()


def restored(
    tensors: Mapping[str, Tensor],
    record: Fields,
    renderer: Renderer,
    latent_width: int,
    device: torch.device | str = "cpu",
) -> EpisodeState:
    """Return the episode state of :func:`episode_state_tensors` and :func:`episode_state_record`."""
    cloud = GaussianCloud(**{name: tensors[f"cloud.{name}"].to(device, copy=True) for name in GAUSSIAN_TENSORS})
    shown = record.object("augmentation")
    augmentation = Augmentation(tuple(shown.entries("quaternion")), shown.number("extent_factor"))
    inputs, targets = record.entries("inputs"), record.entries("targets")
    task = bind(record.text("scene"), cloud, inputs, targets, renderer, record.count("view_batch"), augmentation)
    state = InnerState.begin(task.objective.parameters, latent_width)
    numbers = {name: value for name, value in record.values.items() if isinstance(value, int | float)}
    state.load(OptimizerState(tensors, numbers))
    return EpisodeState(task, state, tensors["near"].to(device, copy=True), record.count("horizon"))
