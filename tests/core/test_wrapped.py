"""What is around an objective answers every question as it does, or is not made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from core.process_group import in_threads
from optim.views import VIEWS, Views
from splatopt.core.checks import InputError
from splatopt.core.objective import (
    QUESTIONS,
    Combine,
    Evaluation,
    GaussNewtonBlocks,
    MissingOracleError,
    Objective,
    Oracle,
    Question,
)
from splatopt.core.row_statistics import RowStatistics, absolute_error
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.wrapped import WrappedObjective, undeclared
from splatopt.curvature.estimators import ParameterProbes, ResidualProbes
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.scene.data_parallel import DataParallel, _OwnParts
from splatopt.scene.microbatches import Microbatched
from splatopt.train.finite_rows import FiniteRows

ALL = (4, 2, 0, 1, 5)


def in_microbatches(inner: Objective) -> Microbatched:
    wrapper = Microbatched(inner, lambda max_parts: None)
    wrapper.max_parts = 2
    return wrapper


def whole(inner: Objective) -> Microbatched:
    return Microbatched(inner, lambda max_parts: None)


WRAPPERS: dict[str, Callable[[Objective], WrappedObjective]] = {
    "sound rows": FiniteRows,
    "whole": whole,
    "microbatches": in_microbatches,
    "sound rows of microbatches": lambda inner: FiniteRows(in_microbatches(inner)),
}


def wrapped_answers(name: str, inner: Callable[[], Objective], ask: Callable[[Objective], object]) -> list[object]:
    """The answer through the wrappers ``name``; from each process where there are several."""
    if not name.startswith("processes"):
        return [ask(WRAPPERS[name](inner()))]

    def work(processes):
        return ask(FiniteRows(DataParallel(in_microbatches(inner()), processes)))

    return in_threads(int(name.rsplit(maxsplit=1)[-1]), work)


every_wrapper = pytest.mark.parametrize("name", [*WRAPPERS, "processes 2", "processes 7"])


def flat(answer: object) -> dict[str, object]:
    """The tensors and numbers of an answer by name."""
    if isinstance(answer, Evaluation):
        metrics = {f"metrics.{key}": value for key, value in answer.metrics.items()}
        gradient = {f"gradient.{key}": value for key, value in answer.gradient.items()}
        return {"loss": answer.loss, "seen": answer.seen} | metrics | gradient
    if isinstance(answer, GaussNewtonBlocks):
        return {"names": answer.names, "blocks": answer.blocks} | dict(answer.diagonal)
    if isinstance(answer, RowStatistics):
        return dict(vars(answer))
    if isinstance(answer, dict):
        return answer
    if isinstance(answer, tuple | list) and answer and isinstance(answer[0], Tensor):
        return {str(position): part for position, part in enumerate(answer)}
    return {"": answer}


def assert_alike(found: object, expected: object, what: str) -> None:
    ours, theirs = flat(found), flat(expected)
    assert ours.keys() == theirs.keys(), what
    for key, value in theirs.items():
        if isinstance(value, Tensor | float):
            tolerance = 1e-8 if what == "hvp" else 1e-12  # a central difference divides rounding by its step
            torch.testing.assert_close(ours[key], value, rtol=tolerance, atol=tolerance, msg=f"{what} {key}")
        else:
            assert ours[key] == value, (what, key)


class Whole(Views):
    """Answers everything: overrides every question that has a default, so that a default is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.held_times = 0

    @property
    def length_scale(self) -> float:
        return 3.5

    def gradient(self, batch) -> Evaluation:
        found = super().gradient(batch)
        return Evaluation(found.loss, found.gradient, found.seen, {"psnr": sum(batch) / len(batch)})

    def views(self, batch) -> list[int]:
        return [view + 100 for view in batch]

    def fixed_parameters(self):
        self.held_times += 1
        return super().fixed_parameters()

    def value(self, batch) -> float:
        return super().value(batch) + 1.0

    def gauss_newton_product(self, batch, tangent):
        return {name: part + 1 for name, part in super().gauss_newton_product(batch, tangent).items()}

    def gauss_newton_form(self, batch, tangent) -> float:
        return super().gauss_newton_form(batch, tangent) + 1.0

    def edit_rows(self, edit: SceneEdit) -> None:
        self.edited = len(edit)

    def exact_hvp(self, batch, tangent):
        return {name: part + 2 for name, part in super().gauss_newton_product(batch, tangent).items()}


def ask_of(question: str) -> Callable[[Objective], object]:
    """Asks ``question`` about a batch of several views, with arguments that fit."""
    reference = Views()
    tangent = {key: torch.full_like(value, 0.5) for key, value in reference.parameters.items()}
    arguments = {
        "tangent": tangent,
        "cotangent": tuple(reference.residuals(ALL)),
        "count": 3,
        "estimator": ResidualProbes(2),
        "method": CentralDifference(),
        "needed": frozenset({Oracle.JVP}),
        "who": "someone",
        "edit": SceneEdit.in_place(2),
        "error": absolute_error,
        "cross": True,
    }

    def ask(objective: Objective) -> object:
        member = inspect.getattr_static(Objective, question)
        if isinstance(member, property):
            return getattr(objective, question)
        wanted = [name for name in inspect.signature(member).parameters if name != "self"]
        given = arguments | {"generator": torch.Generator().manual_seed(3)}
        named = {name: given.get(name) for name in wanted}
        if "batch" in named:
            named["batch"] = ALL
        if question == "fixed_parameters":
            with objective.fixed_parameters():
                return True
        answer = getattr(objective, question)(**named)
        if question == "empty_residuals":
            return [part.shape for part in answer]
        return answer

    return ask


def test_every_public_name_of_objective_has_a_row():
    assert undeclared() == []
    assert set(QUESTIONS) == {name for name in vars(Objective) if not name.startswith("_")} - {"questions"}
    overridden = {name for base in (Whole, Views) for name in vars(base)}
    left = set(QUESTIONS) - overridden
    assert left == {"require", "gauss_newton_diagonal", "hvp"}, "what Whole leaves to Objective's own default"


@every_wrapper
@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_every_question_is_answered_as_the_inner_objective_does(name, question):
    ask = ask_of(question)
    expected = ask(Whole())
    for found in wrapped_answers(name, Whole, ask):
        assert_alike(found, expected, question)


@every_wrapper
def test_composed_questions_take_any_way_of_composing(name):
    tangent = {key: torch.full_like(value, 0.5) for key, value in Views().parameters.items()}

    def ask(objective: Objective) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        diagonal = objective.gauss_newton_diagonal(ALL, ParameterProbes(), generator)
        product = objective.hvp(ALL, tangent, method=ExactHessian())
        return {f"d.{key}": value for key, value in diagonal.items()} | dict(product)

    expected = ask(Whole())
    for found in wrapped_answers(name, Whole, ask):
        assert_alike(found, expected, "composed")


@every_wrapper
def test_statistics_leave_out_what_is_not_asked_for(name):
    def ask(objective: Objective) -> list[RowStatistics]:
        return [objective.statistics((3,), absolute_error, cross) for cross in (True, False, True)]

    expected = ask(Whole())
    assert [one.color_cross is None for one in expected] == [False, True, False]
    for answers in wrapped_answers(name, Whole, ask):
        for found, wanted in zip(answers, expected, strict=True):
            assert_alike(found, wanted, "statistics")


def test_held_is_promised_to_the_inner_objective():
    inner = Whole()
    with FiniteRows(in_microbatches(inner)).fixed_parameters():
        assert inner.held_times == 1


# ---------------------------------------------------------------------- a new question is a row


@dataclass(frozen=True)
class Touches:
    """A record such as a later oracle may answer with."""

    label: tuple[str, ...]
    weight: Tensor
    error: float
    touched: Tensor | None
    sums: dict[str, Tensor]
    missing: Tensor | None = None


ROWS = {
    "label": Combine.SAME,
    "weight": Combine.MEAN,
    "error": Combine.NUMBER,
    "touched": Combine.ANY,
    "sums": Combine.MEAN,
    "missing": Combine.ANY,
}


class Curious(Whole):
    """Answers further questions, each declared in one row."""

    questions = Whole.questions | {
        "touches": Question(ROWS, frozenset({Oracle.GRADIENT}), Touches),
        "largest_view": Question(Combine.SAME),
        "trace": Question(Combine.NUMBER),
        "slopes": Question(Combine.MEAN),
        "doubled": Question(Combine.STACK),
        "along": Question(Combine.NUMBER, of_residuals=True),
        "both": Question(Combine.MEAN, composed=True),
    }

    def touches(self, batch, power: int = 1) -> Touches:
        where = torch.arange(VIEWS)
        touched = (where[:, None] == torch.tensor(list(batch))).any(dim=1)
        mean = torch.tensor([float(view) for view in batch], dtype=torch.float64).pow(power).mean()
        return Touches(("a", "b"), mean.expand(3).clone(), float(mean), touched, {"x": mean.expand(2, 2).clone()})

    def largest_view(self, batch) -> int:
        return max(batch)

    def trace(self, batch) -> float:
        return float(self.jacobian(batch).square().sum())

    def slopes(self, batch, power: int = 1, scale: float = 1.0) -> dict[str, Tensor]:
        return {name: part * scale for name, part in self.gradient(batch).gradient.items()}

    def doubled(self, batch):
        return tuple(2 * part for part in self.residuals(batch))

    def along(self, batch, cotangent, tangent) -> float:
        return sum(float((one * two).sum()) for one, two in zip(cotangent, self.jvp(batch, tangent), strict=True))

    def both(self, batch, factor: float) -> dict[str, Tensor]:
        return {name: part * factor + self.value(batch) for name, part in self.gradient(batch).gradient.items()}


def further(objective: Objective) -> dict[str, object]:
    tangent = {key: torch.full_like(value, 0.5) for key, value in objective.parameters.items()}
    found = objective.touches(ALL, power=2)
    assert isinstance(found, Touches)
    answers = {"label": found.label, "weight": found.weight, "error": found.error, "touched": found.touched}
    answers |= {"sums": found.sums["x"], "missing": found.missing}
    answers |= {"largest": objective.largest_view(ALL), "trace": objective.trace(ALL)}
    answers |= {f"slopes.{name}": part for name, part in objective.slopes(ALL, scale=3.0).items()}
    answers |= {f"doubled.{position}": part for position, part in enumerate(objective.doubled(ALL))}
    answers["along"] = objective.along(ALL, tuple(objective.residuals(ALL)), tangent=tangent)
    return answers | {f"both.{name}": part for name, part in objective.both(ALL, 2.0).items()}


@every_wrapper
def test_a_further_question_is_one_row(name):
    expected = further(Curious())
    for found in wrapped_answers(name, Curious, further):
        assert_alike(found, expected, "further")


def test_a_number_of_rows_that_changes_is_told_to_those_without_a_part():
    class Growing(Curious):
        def touches(self, batch, power: int = 1) -> Touches:
            rows = len(self.values["weights"])
            return Touches(("a",), torch.ones(rows), 1.0, torch.ones(rows, dtype=torch.bool), {})

    def work(processes):
        objective = DataParallel(inner := Growing(), processes)
        sizes = [objective.touches((1,)).weight.shape[0]]
        inner.values = {name: torch.cat([value, value]) for name, value in inner.values.items()}
        return [*sizes, objective.touches((1,)).weight.shape[0], objective.touches((1,)).touched.tolist()]

    assert in_threads(2, work) == [[4, 8, [True] * 8]] * 2


# ---------------------------------------------------------------------- or it is not made


def test_a_method_without_a_row_stops_every_wrapper(monkeypatch):
    monkeypatch.setattr(Objective, "curl", lambda self, batch: 0.0, raising=False)
    with pytest.raises(TypeError, match="QUESTIONS has no row for Objective's curl, so Careless cannot pass it on"):

        class Careless(WrappedObjective):
            pass


def test_a_wrapper_must_say_how_it_answers():
    class Silent(WrappedObjective):
        pass

    with pytest.raises(TypeError, match="Silent.*answer"):
        Silent(Views())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_row_without_its_method_is_refused(wrap):
    class Nameless(Views):
        questions = Views.questions | {"curl": Question(Combine.NUMBER)}

    with pytest.raises(TypeError, match="Nameless declares the question 'curl', which .* method of that name"):
        wrap(Nameless())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_row_taken_out_or_changed_is_refused(wrap):
    class Poorer(Views):
        questions = MappingProxyType({name: row for name, row in Views.questions.items() if name != "value"})

    class Other(Views):
        questions = Views.questions | {"views": Question(Combine.NUMBER)}

    with pytest.raises(TypeError, match="Poorer.questions lacks or changes value"):
        wrap(Poorer())
    with pytest.raises(TypeError, match="Other.questions lacks or changes views"):
        wrap(Other())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_arguments_by_name_alone_are_refused(wrap):
    class Named(Views):
        questions = Views.questions | {"curl": Question(Combine.NUMBER)}

        def curl(self, batch, *, scale: float = 1.0) -> float:
            return scale

    with pytest.raises(TypeError, match="the question 'curl' takes arguments by name alone"):
        wrap(Named())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_is_composed_cannot_be_overridden_behind_a_wrapper(wrap):
    class Own(Views):
        def hvp(self, batch, tangent, method):
            return tangent

    with pytest.raises(TypeError, match="Own overrides hvp, which .* composes of other questions"):
        wrap(Own())


def test_a_missing_oracle_is_refused_by_all_processes_at_once():
    class Poor(Views):
        oracles = frozenset({Oracle.GRADIENT})

    def work(processes):
        with pytest.raises(MissingOracleError, match="'gauss_newton_blocks' needs gauss_newton_blocks, which Poor"):
            DataParallel(Poor(), processes).gauss_newton_blocks((1,))
        return True

    assert in_threads(2, work) == [True, True]


def test_an_estimator_of_processes_may_ask_only_what_vanishes_with_the_jacobian():
    def work(processes):
        parts = _OwnParts(DataParallel(Views(), processes))
        for ask in (parts.gradient, parts.value, parts.gauss_newton_blocks, parts.residuals):
            with pytest.raises(InputError, match=f"asks for {ask.__name__}, which cannot be shared"):
                ask((0, 1))
        return True

    assert in_threads(2, work) == [True, True]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"combine": Combine.STACK, "of_residuals": True}, "STACK"),
        ({"combine": {"loss": Combine.NUMBER}}, "record"),
        ({"combine": Combine.MEAN, "record": Evaluation}, "record"),
        ({"combine": {"loss": Combine.STACK}, "record": Evaluation}, "STACK"),
    ],
)
def test_a_row_that_cannot_be_combined_is_refused(row, problem):
    with pytest.raises(ValueError, match=problem):
        Question(**row)
