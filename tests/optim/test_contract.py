"""What every registered optimizer must do."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from importlib.util import find_spec

import pytest
import torch

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from fields.cases import tiny_image_task
from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Objective, Oracle
from splatopt.core.optimizer import Optimizer, Progress, find_optimizer, optimizer_names, register
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.fields import ImageTask
from splatopt.optim.averaging import Averaged
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS, make_field_optimizer
from splatopt.optim.zoo import REFUSED_ON_SCENES, ZooOptions, zoo_names

HORIZON = 200


ON_A_CLOUD = " on a cloud"
FUSED = ("sign-tr", "adam-tr", "tr2-paper", "tr2", "block-gn")
"""Take a cloud of float32 in fused passes, and all else in torch."""


def make(name: str, objective: Quadratic) -> Optimizer:
    entry = find_optimizer(name.removesuffix(ON_A_CLOUD))
    return entry.optimizer(objective, entry.options(), torch.Generator().manual_seed(3))


def take(optimizer: Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        optimizer.step(None, Progress(step, HORIZON))


def copy_of(state: OptimizerState) -> OptimizerState:
    return OptimizerState({name: value.clone() for name, value in state.tensors.items()}, dict(state.scalars))


def quadratic(name: str, rows: int = 8, dtype: torch.dtype = torch.float32) -> Quadratic:
    """The quadratic for ``name``: minima as far as its steps are long, and Gaussians for what is made for them."""
    far = {"learned": 3.0, "adam-searched": 3.0, f"adam-tr{ON_A_CLOUD}": 0.1}
    return Quadratic(rows, dtype, spread=far.get(name, 0.2), gaussians=name == "learned" or name.endswith(ON_A_CLOUD))


every_optimizer = pytest.mark.parametrize("name", optimizer_names())
every_form = pytest.mark.parametrize("name", [*optimizer_names(), *(f"{name}{ON_A_CLOUD}" for name in FUSED)])


ZOO = [f"zoo:{name}" for name in (zoo_names() if find_spec("pytorch_optimizer") else ())]
MOMENTS = {0: 27, 1: 27, 2: 27, 15: 27}
"""Steps after which a state is saved, and up to which it goes on."""

FEWER_STEPS = {0: 6, 1: 8, 2: 8, 13: 22}
"""Likewise, where there are many optimizers; nothing of theirs comes less often than every tenth step."""


def zoo_options(name: str) -> ZooOptions:
    return ZooOptions(settings=("num_iterations=200",) if name == "zoo:ranger21" else ())


def check_it_goes_on(make_objective, make_optimizer, batch=None, moments=MOMENTS) -> None:
    """A state of any moment, as a checkpoint keeps it, goes on as the run that was not interrupted."""

    def begin(objective: Objective) -> tuple[Optimizer, torch.Generator]:
        generator = torch.Generator().manual_seed(3)
        drawn = generator.get_state()
        optimizer = make_optimizer(objective, generator)
        assert torch.equal(generator.get_state(), drawn), "nothing is drawn while an optimizer is made"
        return optimizer, generator

    def dense(tensors) -> dict[str, torch.Tensor]:
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}

    def go(optimizer: Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.step(batch, Progress(step, HORIZON))

    whole = make_objective()
    optimizer, generator = begin(whole)
    saved = {}
    for step in range(max(moments.values()) + 1):
        if step in (*moments, *moments.values()):
            state = optimizer.state()
            kept = OptimizerState(dense(state.tensors), json.loads(json.dumps(dict(state.scalars), allow_nan=False)))
            saved[step] = kept, dense(whole.parameters), generator.get_state()
        go(optimizer, step, step + 1)
    for step, end in moments.items():
        state, parameters, drawn = saved[step]
        objective = make_objective()
        for name, value in objective.parameters.items():
            value.copy_(parameters[name])
        resumed, generator = begin(objective)
        resumed.load_state(state)
        generator.set_state(drawn)
        go(resumed, step, end)
        for name, value in saved[end][1].items():
            assert torch.equal(value, objective.parameters[name]), f"{name}, saved at step {step}"


@pytest.mark.parametrize("average", [0.0, 20.0])
@pytest.mark.parametrize("name", [*optimizer_names(), *(f"{name}{ON_A_CLOUD}" for name in FUSED)])
def test_a_scene_goes_on_bit_exactly_from_any_step(name, average):
    if average and name == "learned":
        pytest.skip("learned leaves an average already, and train refuses another")
    entry = find_optimizer(name.removesuffix(ON_A_CLOUD))

    def optimizer(objective: Objective, generator: torch.Generator) -> Optimizer:
        made = entry.optimizer(objective, entry.options(), generator)
        return Averaged(made, average) if average else made

    check_it_goes_on(lambda: quadratic(name), optimizer)


@pytest.mark.parametrize("name", list(FIELD_OPTIMIZERS))
def test_a_field_goes_on_bit_exactly_from_any_step(name):
    def optimizer(objective: Objective, generator: torch.Generator) -> Optimizer:
        return make_field_optimizer(name, objective, "sine", None, generator)

    check_it_goes_on(lambda: tiny_image_task("sine", width=8), optimizer, torch.arange(36), FEWER_STEPS)


NAMED = [name if name in ("zoo:lion", "zoo:ranger21") else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]


@pytest.mark.parametrize("name", NAMED)
def test_a_field_of_the_zoo_goes_on_bit_exactly_from_any_step(name):
    def task() -> ImageTask:
        made = tiny_image_task("sine", width=8)
        return ImageTask(made.module.float(), made.image.float())

    def optimizer(objective: Objective, generator: torch.Generator) -> Optimizer:
        return make_field_optimizer(name, objective, "sine", zoo_options(name), generator)

    check_it_goes_on(task, optimizer, torch.arange(36), FEWER_STEPS)


@pytest.mark.parametrize("name", NAMED)
def test_a_scene_of_the_zoo_goes_on_bit_exactly_from_any_step(name):
    entry = find_optimizer(name)

    def optimizer(objective: Objective, generator: torch.Generator) -> Optimizer:
        return entry.optimizer(objective, zoo_options(name), generator)

    if name.removeprefix("zoo:") in REFUSED_ON_SCENES:
        with pytest.raises(InputError, match=f"{name} is not handed out for scenes"):
            optimizer(Quadratic(gaussians=True), torch.Generator())
        return
    check_it_goes_on(lambda: Quadratic(gaussians=True), optimizer, None, FEWER_STEPS)


def test_adam_is_registered():
    assert "adam" in optimizer_names()


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quadratic_falls_and_types_stay(name, dtype):
    objective = quadratic(name, dtype=dtype)
    optimizer = make(name, objective)
    before = objective.loss()
    tensors = dict(objective.parameters)
    take(optimizer, 0, HORIZON)
    assert objective.loss() < 0.5 * before
    for key, value in objective.parameters.items():
        assert value is tensors[key], "parameters are written in place"
        assert value.dtype == dtype
        assert torch.isfinite(value).all()
    others = {"near": torch.int64, "visited_views": torch.int64, "average.ages": torch.float32}
    for key, value in optimizer.state().tensors.items():
        assert value.dtype == others.get(key, dtype)


@every_form
def test_the_evaluation_is_of_the_point_the_step_started_from(name):
    objective = quadratic(name)
    optimizer = make(name, objective)
    before = objective.loss()
    evaluation = optimizer.step(None, Progress(0, HORIZON))
    assert evaluation.loss == before
    assert objective.loss() < before


@every_form
def test_saved_state_continues_bit_exactly(name):
    straight = quadratic(name)
    optimizer = make(name, straight)
    take(optimizer, 0, 7)
    saved = copy_of(optimizer.state())
    resumed = quadratic(name)
    for key, value in resumed.parameters.items():
        value.copy_(straight.parameters[key])
    take(optimizer, 7, 7)
    second = make(name, resumed)
    second.load_state(saved)
    take(second, 7, 7)
    for key, value in straight.parameters.items():
        assert torch.equal(value, resumed.parameters[key]), key
    for key, value in optimizer.state().tensors.items():
        assert torch.equal(value, second.state().tensors[key]), key
    assert optimizer.state().scalars == second.state().scalars


@every_form
def test_loading_copies_the_state(name):
    objective = quadratic(name)
    optimizer = make(name, objective)
    take(optimizer, 0, 3)
    saved = copy_of(optimizer.state())
    kept = copy_of(saved)
    optimizer.load_state(saved)
    take(optimizer, 3, 3)
    for key, value in saved.tensors.items():
        assert torch.equal(value, kept.tensors[key]), key


@every_form
def test_a_state_of_other_parameters_is_refused(name):
    optimizer = make(name, quadratic(name, rows=8))
    take(optimizer, 0, 1)
    if not optimizer.state().tensors:
        pytest.skip(f"{name} keeps no tensors")
    with pytest.raises(InputError, match="state"):
        make(name, quadratic(name, rows=7)).load_state(copy_of(optimizer.state()))
    with pytest.raises(InputError, match="state"):
        optimizer.load_state(OptimizerState({}, {}))


@every_form
def test_row_edits_keep_the_state_of_kept_rows(name):
    objective = quadratic(name, rows=8)
    optimizer = make(name, objective)
    take(optimizer, 0, 4)
    old = copy_of(optimizer.state())
    source, fresh = torch.tensor([4, 0, 0, 2]), torch.tensor([False, False, True, False])
    edit = SceneEdit(source, fresh)
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    new = optimizer.state()
    for key, value in new.tensors.items():
        if old.tensors[key].shape[:1] != (8,):
            continue
        assert value.shape[0] == 4
        assert torch.equal(value[~fresh], old.tensors[key][source[~fresh]])
        expected = torch.zeros_like(value[fresh])
        if key.startswith("average.") and key != "average.ages":  # another version of the parameters: begins at them
            expected = objective.parameters[key.removeprefix("average.")][fresh]
        if key == "growth.largest":  # how large a row may become: a multiple of what it begins as
            expected = objective.parameters["log_scales"][fresh].amax(dim=1) + math.log(optimizer.options.max_growth)
        assert torch.equal(value[fresh], expected)
    before = objective.loss()
    take(optimizer, 4, 100)
    assert objective.loss() < before


@every_form
def test_pruning_every_row_is_survived(name):
    objective = quadratic(name, rows=6)
    optimizer = make(name, objective)
    edit = SceneEdit.keep(torch.zeros(6, dtype=torch.bool))
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    take(optimizer, 0, 1)
    assert objective.parameters["means"].shape == (0, 3)


@every_optimizer
def test_a_missing_oracle_is_refused_by_name(name):
    class Mute(Quadratic):
        @property
        def oracles(self) -> frozenset[Oracle]:
            return frozenset()

    entry = find_optimizer(name)
    with pytest.raises(MissingOracleError) as caught:
        entry.optimizer(Mute(), entry.options(), None)
    message = str(caught.value)
    assert entry.optimizer.__name__ in message
    assert "formula" in message
    for oracle in entry.optimizer.needs:
        assert oracle.value in message


@every_optimizer
def test_every_option_has_a_help_a_unit_and_a_source(name):
    from tyro._docstrings import get_field_docstring

    options = find_optimizer(name).options
    for field in options.__dataclass_fields__:
        help = get_field_docstring(options, field, ())
        assert help, field
        assert "Unit:" in help, field
        assert "Source:" in help, field


@pytest.mark.parametrize("name", optimizer_names())
def test_options_come_back_from_json(name):
    options = find_optimizer(name).options
    assert options(**json.loads(json.dumps(asdict(options())))) == options()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'adm'.*adam"):
        find_optimizer("adm")


def test_a_name_is_registered_once():
    entry = find_optimizer("adam")
    with pytest.raises(ValueError, match="adam"):
        register("adam", entry.optimizer, entry.options)
