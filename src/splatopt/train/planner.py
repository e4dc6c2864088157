"""Who decides how a run goes on: its clock, or a plan that is repeated by steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from splatopt.train.plan import Decision, Plan


@dataclass(frozen=True)
class Taken:
    """What a run has come to after a step.

    Attributes:
        step: Steps done.
        gaussians: How many there are now.
        now: Seconds since the run was asked for, those of processes before included.
        loss: Of the step's training views.
    """

    step: int
    gaussians: int
    now: float
    loss: float


class Planner(ABC):
    """Keeps a run's plan and adds decisions to it.

    Attributes:
        plan: All decisions so far, and of a repeated run those to come.
        current: The one that holds now.
    """

    plan: Plan
    current: Decision

    def take(self, decision: Decision) -> Decision:
        """Have a decision hold from now on."""
        self.plan, self.current = self.plan.joined(decision), decision
        return decision

    @abstractmethod
    def go_back(self, step: int) -> Decision:
        """Return the decision that held after ``step`` steps, at which the run goes on."""

    @abstractmethod
    def after_step(self, taken: Taken) -> Decision | None:
        """Return a decision where one is due; none comes after the last step of a stage."""

    def seconds_left(self, taken: Taken) -> float | None:
        """Return the seconds until the run is to end, final scoring included; None where no clock says so."""
        return None


class Repeated(Planner):
    """Takes the decisions of a plan at their steps again; knows no clock."""

    def __init__(self, plan: Plan) -> None:
        """Begin with the first decision of ``plan``."""
        self.plan = plan
        self.current = plan.at(0)

    def go_back(self, step: int) -> Decision:
        """Return the decision that holds after ``step`` steps."""
        self.current = self.plan.at(step)
        return self.current

    def after_step(self, taken: Taken) -> Decision | None:
        """Return the decision of this step, where the plan has one."""
        found = self.plan.at(taken.step)
        if found is self.current:
            return None
        self.current = found
        return found
