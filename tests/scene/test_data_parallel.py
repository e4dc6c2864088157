"""Several processes give one process's answers, the same bits in each, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from core.process_group import in_threads
from optim.views import VIEWS, Views
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, MissingOracleError, Oracle
from splatopt.core.row_statistics import absolute_error
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes
from splatopt.curvature.hessian import CentralDifference
from splatopt.scene.data_parallel import DataParallel

BATCHES = [(3,), (0, 1), (4, 2, 0), tuple(range(VIEWS)), (1, 1, 5, 2, 0)]
COUNTS = [2, 3]


def tangent(objective: Views) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in objective.parameters.items()
    }


def every_answer(objective, inner: Views, batch: tuple[int, ...]) -> dict[str, torch.Tensor | float]:
    """All that may be asked, as named tensors and numbers."""
    v = tangent(inner)
    evaluation = objective.gradient(batch)
    found: dict = {f"gradient.{name}": part.clone() for name, part in evaluation.gradient.items()}
    found |= {"loss": evaluation.loss, "psnr": evaluation.metrics["psnr"], "seen": evaluation.seen.clone()}
    found |= {"value": objective.value(batch), "form": objective.gauss_newton_form(batch, v)}
    u = objective.residuals(batch)
    for kind, parts in (("residual", u), ("jvp", objective.jvp(batch, v))):
        found |= {f"{kind}.{position}": part.clone() for position, part in enumerate(parts)}
    generator = torch.Generator().manual_seed(3)
    several = {
        "vjp": lambda: objective.vjp(batch, u),
        "product": lambda: objective.gauss_newton_product(batch, v),
        "exact": lambda: objective.gauss_newton_diagonal(batch, Exact()),
        "parameter": lambda: objective.gauss_newton_diagonal(batch, ParameterProbes(2), generator),
        "residual probes": lambda: objective.gauss_newton_diagonal(batch, ResidualProbes(), generator),
        "difference": lambda: objective.hvp(batch, v, CentralDifference()),
    }
    for kind, ask in several.items():
        found |= {f"{kind}.{name}": part.clone() for name, part in ask().items()}
    found["generator"] = generator.get_state()
    rows = objective.statistics(batch, absolute_error)
    found |= {f"statistics.{name}": part.clone() for name, part in vars(rows).items()}
    blocks = objective.gauss_newton_blocks(batch)
    found |= {"blocks": blocks.blocks.clone(), "rest": blocks.diagonal["rest"].clone()}
    assert blocks.names == inner.block_names
    return found


class ExtraMetrics(Views):
    """The mean over views of a fact, as objectives give it."""

    def gradient(self, batch):
        found = super().gradient(batch)
        return Evaluation(found.loss, found.gradient, found.seen, {"psnr": sum(batch) / len(batch)})


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_all_oracles_answer_as_in_one_process(count, batch):
    alone = ExtraMetrics()
    expected = every_answer(alone, alone, batch)

    def work(processes):
        inner = ExtraMetrics()
        return every_answer(DataParallel(inner, processes), inner, batch)

    answers = in_threads(count, work)
    for name, value in expected.items():
        for answer in answers:
            assert torch.equal(torch.as_tensor(answer[name]), torch.as_tensor(answers[0][name])), name
        # A central difference divides rounding by its step.
        tolerance = 1e-8 if name.startswith("difference") else 1e-12
        torch.testing.assert_close(
            torch.as_tensor(answers[0][name]), torch.as_tensor(value), rtol=tolerance, atol=tolerance, msg=name
        )


def test_each_looks_at_its_own_views_alone():
    class Watched(Views):
        def gradient(self, batch):
            looked.setdefault(self, []).append(tuple(batch))
            return super().gradient(batch)

    looked: dict = {}

    def work(processes):
        inner = Watched()
        shared = DataParallel(inner, processes)
        for batch in ((5, 4, 3, 2, 1), (0,)):
            shared.gradient(batch)
        return looked.get(inner, [])

    assert in_threads(3, work) == [[(5, 2), (0,)], [(4, 1)], [(3,)]]


def test_an_objective_that_sees_no_rows_is_shared_too():
    class Blind(Views):
        def gradient(self, batch):
            found = super().gradient(batch)
            return Evaluation(found.loss, found.gradient, None, {})

    answers = in_threads(2, lambda processes: DataParallel(Blind(), processes).gradient((2,)))
    assert [answer.seen for answer in answers] == [None, None]
    assert answers[0].loss == answers[1].loss == Views().gradient((2,)).loss


def test_a_nan_of_one_process_reaches_all():
    class Broken(Views):
        def gradient(self, batch):
            found = super().gradient(batch)
            if 1 in batch:
                found.gradient["weights"][0] = float("nan")
            return found

    for answer in in_threads(2, lambda processes: DataParallel(Broken(), processes).gradient((0, 1))):
        assert answer.gradient["weights"].isnan().tolist() == [True, False, False, False]


def test_a_missing_oracle_is_refused_in_the_inner_ones_words():
    class Poor(Views):
        oracles = frozenset({Oracle.GRADIENT})

    def work(processes):
        DataParallel(Poor(), processes).require(frozenset({Oracle.JVP}), "lm")

    with pytest.raises(MissingOracleError, match="'lm' needs jvp, which Poor on the dense backend does not give"):
        in_threads(2, work)


def test_what_fails_in_one_process_fails_in_all():
    def work(processes):
        def action():
            if processes.rank == 1:
                raise InputError("no such capture")
            return "fine"

        with pytest.raises(InputError) as caught:
            processes.together(action)
        return type(caught.value).__name__, str(caught.value)

    assert in_threads(3, work) == [
        ("InputError", "process 1: no such capture"),
        ("ReportedElsewhereError", "no such capture"),
        ("ReportedElsewhereError", "no such capture"),
    ]
