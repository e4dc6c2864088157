"""What one process of a run computes with: its device, its images there, and its part of the objective."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from splatopt.core import devices
from splatopt.core.checks import InputError
from splatopt.core.objective import Objective, Tensors
from splatopt.core.processes import Processes
from splatopt.data import Capture
from splatopt.data.prefetch import ImagesAhead
from splatopt.scene.data_parallel import DataParallel
from splatopt.scene.microbatches import Microbatched
from splatopt.scene.photometric import Images
from splatopt.train.evaluate import Scores

READ_AHEAD = 1024
"""Views that are looked at, at most, for what there is to decode ahead."""


class ProcessContext:
    """What one process of a run computes with.

    The photographs are decoded ahead. They stay on the host where that is where they are rendered; for another device
    they are fetched ahead as well.
    """

    def __init__(self, device: torch.device, capture: Capture, processes: Processes) -> None:
        """Begin with nothing fetched.

        Args:
            device: Where this process computes.
            capture: Whose photographs are fetched.
            processes: Those that share the run.
        """
        self.processes = processes
        self.device = device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._store, self._whole = capture.images, ImagesAhead(capture.images, self.device)
        self._at_hand = self._whole
        self._max_views: int | None = None

    @property
    def images(self) -> Images:
        """The photographs where they are rendered, at full size."""
        return self._whole.images

    def shrunk_images(self, factor: int) -> Images:
        """Return the photographs with sides ``factor`` times shorter; they are what is fetched from now on.

        Those of another factor than 1 that were fetched before are dropped.
        """
        if self._at_hand is not self._whole:
            self._at_hand.close()
        self._at_hand = ImagesAhead(self._store.shrunk(factor), self.device) if factor > 1 else self._whole
        return self._at_hand.images

    def guard(self, objective: Objective, tell: Callable[[str], None]) -> Objective:
        """Return what optimizers ask: ``objective``, shared by the processes, in microbatches where memory runs out.

        Args:
            objective: Of this process.
            tell: Takes a sentence when microbatches become smaller.
        """

        def note(max_views: int) -> None:
            if self._max_views is None:
                tell(
                    f"memory ran out over the views of a step; its views are now taken at most {max_views} at a time, "
                    "and the step is the same"
                )
            self._max_views = max_views

        guarded = Microbatched(objective, note)
        guarded.max_parts = self._max_views
        return DataParallel(guarded, self.processes) if self.processes.world_size > 1 else guarded

    def free_memory(self) -> int:
        """Return the bytes that one process of the run may take: on CUDA its device's, else a share of the host's."""
        share = 1 if self.device.type == "cuda" else self.processes.launch.local_world_size
        return devices.free_memory(self.device) // share

    def expect(self, views: Sequence[int], later: Sequence[int]) -> None:
        """Begin to fetch what this process renders of a step's ``views`` and of those that come ``later``."""
        own = slice(self.processes.rank, None, self.processes.world_size)
        following = (*views, *later)[own]
        at_once = len((*views, *later)[: 2 * len(views)][own])
        self._at_hand.expect(following[:at_once], following[at_once:])

    def expect_first(self, scored: Sequence[int], views: Sequence[int]) -> None:
        """Begin to fetch what the first process scores at full size before the first step, and then ``views``."""
        whole = tuple(scored) if self.processes.is_first else ()
        own = views[self.processes.rank :: self.processes.world_size]
        if self._at_hand is self._whole:
            self._whole.expect((), (*whole, *own))
            return
        self._whole.expect((), whole)
        self._at_hand.expect((), own)

    def seconds(self, *times: float) -> list[float]:
        """Return the first process's times, so that all do the same at the same step."""
        return self.processes.sum_numbers([value if self.processes.is_first else 0.0 for value in times])

    def smallest(self, number: int) -> int:
        """Return the smallest of the processes' numbers."""
        found = torch.tensor([-float(number)], dtype=torch.float64)
        self.processes.max([found])
        return int(-found)

    def scores(self, evaluate: Callable[[], Scores]) -> Scores:
        """Return what the first process finds when it evaluates."""
        if self.processes.world_size == 1:
            return evaluate()
        said = self.processes.broadcast_text(lambda: _scores_text(evaluate()))
        values = json.loads(said)
        return Scores.from_json(values, values["split"], values["subset"])

    def check_alike(self, tensors: Tensors, step: int) -> None:
        """Make sure that all processes hold the same bits.

        Args:
            tensors: What they hold.
            step: Steps done, for the message.

        Raises:
            InputError: They do not; every process raises it.
        """
        own = " ".join(f"{name}={fingerprint(tensor)}" for name, tensor in sorted(tensors.items()))
        for rank, other in enumerate(self.processes.texts(own)):
            pairs = zip(own.split(), other.split(), strict=False)
            if other != own:
                name = next((ours.partition("=")[0] for ours, theirs in pairs if ours != theirs), "its tensors")
                raise InputError(
                    f"process {rank} and process {self.processes.rank} differ in {name} at step {step}: all processes "
                    "must read the same capture and run folder, on processors of one kind with one version of PyTorch"
                )

    def close(self) -> None:
        """Stop fetching."""
        if self._at_hand is not self._whole:
            self._at_hand.close()
        self._whole.close()


def fingerprint(tensor: Tensor) -> int:
    """Return a number that tells tensors of one shape apart by their bits, whatever their values mean."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = flat[: flat.numel() // 4 * 4].view(torch.int32).long()
    # Sums wrap around and so do not depend on their order; two of them, the second by place.
    places = torch.arange(1, whole.numel() + 1, device=whole.device) % 65_521
    return hash((int(whole.sum()), int((whole * places).sum()), int(flat.long().sum()), flat.numel()))


def _scores_text(scores: Scores) -> str:
    return json.dumps({**scores.to_json(), "split": scores.split, "subset": scores.subset})
