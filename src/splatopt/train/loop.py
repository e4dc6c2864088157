"""Training a scene: what a run needs is found, and its steps are taken."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from splatopt.core.processes import Processes
from splatopt.data import Capture
from splatopt.raster.renderer import Renderer
from splatopt.runs.events import Warned
from splatopt.train.config import TrainConfig
from splatopt.train.events import Callback
from splatopt.train.machine import machine_around, open_machine
from splatopt.train.opening import Opening, open_training
from splatopt.train.pacing import Pacing
from splatopt.train.planning import Clock, clock_from_now
from splatopt.train.process_context import ProcessContext
from splatopt.train.result import TrainResult
from splatopt.train.trainer import Trainer


def train(
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    capture: Capture | None = None,
    renderer: Renderer | None = None,
    processes: Processes | None = None,
    clock: Clock | None = None,
) -> TrainResult:
    """Train a scene and leave a run's folder.

    Args:
        config: What to do.
        callbacks: Called with every event of the run, in the first process.
        capture: Used in place of the one that ``config`` names; loaded from there when None.
        renderer: Used in place of the one that ``config`` names.
        processes: Those that share every step's views, from :func:`splatopt.core.processes.join`; this one alone
            when None. Each calls this function alike, and each gets the same result.
        clock: Returns the seconds since the run was asked for, which ``--minutes`` counts; since this call when None.

    Returns:
        The trained scene and its scores.

    Raises:
        InputError: Something that was given cannot be used, or the numbers broke down twice.
        InterruptedRunError: Ctrl-C or a request to terminate; a checkpoint was written.
        LostRunError: Another process of the run was lost; the last checkpoint is kept.
        OutOfMemoryError: Memory ran out over a single view, or outside the views; the last checkpoint is kept.
    """
    team, clock = processes or Processes(), clock or clock_from_now()

    def prepare() -> tuple[Trainer, Opening]:
        opening = open_training(config, capture, has_renderer=renderer is not None)
        if renderer is None:
            machine = open_machine(opening.config, opening.backend, team.launch)
        else:
            machine = machine_around(renderer, opening.config, team.launch)
        listeners = tuple(callbacks) if team.is_first else ()
        pacing = Pacing(clock, opening.plan, ProcessContext(machine.device, opening.capture, team))
        return Trainer(opening.config, opening.capture, machine, listeners, team, pacing), opening

    trainer, opening = team.together(prepare)
    warnings = team.together(lambda: trainer.begin(opening.checkpoint))
    with contextlib.ExitStack() as alone:
        # Nothing is written before all have found that they can begin.
        team.together(lambda: alone.enter_context(trainer.keep_others_out()))
        team.together(lambda: trainer.open_folder(opening.checkpoint))
        for warning in (*opening.warnings, *warnings):
            trainer.tell(Warned(warning))
        return trainer.run()
