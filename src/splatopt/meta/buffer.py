"""The checkpoint buffer: scenes on their way, from which episodes go on.

Situations are kept by how deep they are, in steps taken, so that an episode can begin from a young one as likely as
from an old one. One that has grown into a deeper class that is full pushes out the one there longest, but seldom;
otherwise it leaves itself, so that the deep ones can grow deeper than they would by queueing.

Source: Pearl et al. 2026, "Learn2Splat" (20 states, the oldest leaves); the classes of depth are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from splatopt.core.state import OptimizerState
from splatopt.meta.episode import Situation
from splatopt.meta.inner import GROUPS, InnerState
from splatopt.meta.practice import Guise, bind
from splatopt.raster.renderer import Renderer
from splatopt.scene.gaussians import GaussianCloud

DEPTHS = (40, 400)
"""Where a deeper class begins. Unit: steps."""


@dataclass
class CheckpointBuffer:
    """Situations by depth.

    Attributes:
        capacity: Situations in each class at most.
        deepest: Steps after which one is not kept any longer.
        push: Probability that a newcomer pushes out the one longest there, where its class is full.
        classes: The situations, in the order in which they came.
    """

    capacity: int = 8
    deepest: int = 6000
    push: float = 0.2
    classes: list[list[Situation]] = field(default_factory=lambda: [[] for _ in range(len(DEPTHS) + 1)])

    def __len__(self) -> int:
        return sum(len(kept) for kept in self.classes)

    def put(self, situation: Situation, came_from: int | None, generator: torch.Generator) -> bool:
        """Keep ``situation``; False where it was not kept.

        Args:
            situation: What to keep.
            came_from: The class that it was taken from, None for a new one.
            generator: Decides whether a newcomer to a full class is let in.
        """
        steps = situation.state.steps
        if steps > self.deepest:
            return False
        place = sum(steps >= depth for depth in DEPTHS)
        kept = self.classes[place]
        if len(kept) >= self.capacity:
            is_newcomer = place != came_from
            if is_newcomer and place > 0 and float(torch.rand((), generator=generator)) >= self.push:
                return False
            kept.pop(0)
        kept.append(situation)
        return True

    def take(self, generator: torch.Generator) -> tuple[Situation, int]:
        """Take out one situation, from each class that holds any equally likely; return it and its class."""
        filled = [place for place, kept in enumerate(self.classes) if kept]
        place = filled[int(torch.randint(len(filled), (), generator=generator))]
        kept = self.classes[place]
        return kept.pop(int(torch.randint(len(kept), (), generator=generator))), place

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return all tensors by name, and one JSON record for each situation."""
        tensors: dict[str, Tensor] = {}
        records: list[dict[str, Any]] = []
        for place, kept in enumerate(self.classes):
            for situation in kept:
                prefix = f"{len(records)}."
                tensors |= {prefix + name: value for name, value in situation_tensors(situation).items()}
                records.append(situation_record(situation) | {"class": place})
        return tensors, records

    def load(
        self,
        tensors: Mapping[str, Tensor],
        records: list[dict[str, Any]],
        renderer: Renderer,
        latent_width: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Go on from what :meth:`state` gave."""
        self.classes = [[] for _ in range(len(DEPTHS) + 1)]
        for number, record in enumerate(records):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.classes[record["class"]].append(restored(own, record, renderer, latent_width, device))


def situation_tensors(situation: Situation) -> dict[str, Tensor]:
    """Return the tensors of one situation by name."""
    cloud = {f"cloud.{name}": value for name, value in situation.practice.objective.parameters.items()}
    return cloud | situation.state.tensors() | {"near": situation.near}


def situation_record(situation: Situation) -> dict[str, Any]:
    """Return what JSON must hold of one situation."""
    practice = situation.practice
    return {
        "scene": practice.scene,
        "inputs": list(practice.inputs),
        "targets": list(practice.targets),
        "view_batch": practice.view_batch,
        "guise": asdict(practice.guise),
        "horizon": situation.horizon,
    } | situation.state.scalars()


def restored(
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    renderer: Renderer,
    latent_width: int,
    device: torch.device | str = "cpu",
) -> Situation:
    """Return the situation of :func:`situation_tensors` and :func:`situation_record`."""
    cloud = GaussianCloud(**{name: tensors[f"cloud.{name}"].to(device, copy=True) for name in GROUPS})
    guise = Guise(tuple(record["guise"]["turn"]), record["guise"]["pace"])
    inputs, targets = record["inputs"], record["targets"]
    practice = bind(record["scene"], cloud, inputs, targets, renderer, record["view_batch"], guise)
    state = InnerState.begin(practice.objective.parameters, latent_width)
    state.load(OptimizerState(tensors, record))
    return Situation(practice, state, tensors["near"].to(device, copy=True), record["horizon"])
