"""Where memory runs out over a batch, its microbatches give the same answers."""

from __future__ import annotations

import pytest
import torch

from optim.views import VIEWS, Views
from scene.test_data_parallel import ExtraMetrics, every_answer
from scene.test_photometric_oracles import make
from splatopt.core.row_statistics import GradientStatistics
from splatopt.raster.reference import ReferenceRenderer
from splatopt.scene.microbatches import ExhaustedError, Microbatched, is_exhaustion

ALL = tuple(range(VIEWS))


class Cramped(ExtraMetrics):
    """Fits at most ``room`` views, and raises ``error`` over more."""

    def __init__(self, room: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.room, self.error = room, error or MemoryError("std::bad_alloc")
        self.tried: list[int] = []

    def residual(self, batch):
        self.check(batch)
        return super().residual(batch)

    def jacobian(self, batch):
        self.check(batch)
        return super().jacobian(batch)

    def check(self, batch):
        self.tried.append(len(batch))
        if len(batch) > self.room:
            raise self.error


@pytest.mark.parametrize("batch", [ALL, (2, 0, 1), (4,)])
@pytest.mark.parametrize("room", [1, 2, 3])
def test_all_oracles_answer_as_with_enough_memory(batch, room):
    alone = ExtraMetrics()
    expected = every_answer(alone, alone, batch)
    inner = Cramped(room)
    answers = every_answer(Microbatched(inner, lambda max_parts: None), inner, batch)
    for name, value in expected.items():
        tolerance = 1e-8 if name.startswith("difference") else 1e-12
        torch.testing.assert_close(
            torch.as_tensor(answers[name]), torch.as_tensor(value), rtol=tolerance, atol=tolerance, msg=name
        )


def test_the_bound_is_halved_until_it_fits_and_then_kept():
    told = []
    inner = Cramped(1)
    guarded = Microbatched(inner, told.append)
    guarded.gradient(ALL)
    assert told == [3, 2, 1]
    inner.tried.clear()
    guarded.gradient(ALL)
    assert max(inner.tried) == 1
    assert told == [3, 2, 1]


def test_nothing_changes_where_memory_suffices():
    inner = Views()
    expected, found = inner.gradient(ALL), Microbatched(inner, lambda max_parts: None).gradient(ALL)
    assert found.loss == expected.loss
    for name, part in expected.gradient.items():
        assert torch.equal(found.gradient[name], part)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    ],
)
def test_one_view_that_does_not_fit_is_tried_twice_and_then_said(error):
    assert is_exhaustion(error)
    inner = Cramped(0, error)
    guarded = Microbatched(inner, lambda max_parts: None)
    with pytest.raises(ExhaustedError) as caught:
        guarded.value(ALL)
    assert str(caught.value) == str(error)
    assert guarded.max_parts == 1
    assert inner.tried == [6, 3, 2, 1, 1]


def test_what_a_cache_held_back_is_enough_for_one_view():
    inner = Cramped(0)
    guarded = Microbatched(inner, lambda max_parts: None)
    found = []

    def check(batch):
        found.append(batch)
        if len(found) == 1:
            raise MemoryError

    inner.check = check
    assert guarded.value((3,)) == Views().value((3,))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes differ"):
        Microbatched(Cramped(2, RuntimeError("shapes differ")), lambda max_parts: None).gradient(ALL)


def test_views_before_the_one_that_has_no_room_are_counted_once():
    class Scarce(ReferenceRenderer):
        calls = 0

        def accumulate_gradient(self, gaussians, problem, into, seen, observed=None):
            self.calls += 1
            if self.calls == 2:
                raise MemoryError("std::bad_alloc")
            return super().accumulate_gradient(gaussians, problem, into, seen, observed)

    counted = []
    for renderer in (ReferenceRenderer(), Scarce()):
        objective = make(renderer=renderer)
        objective.observed = GradientStatistics(objective.parameters)
        Microbatched(objective, lambda max_parts: None).gradient((0, 1, 2))
        counted.append(objective.observed)
    for name, sums in counted[0].tensors().items():
        torch.testing.assert_close(counted[1].tensors()[name], sums)
    assert counted[0].views.max() == 3
