"""What is handed out of the pytorch-optimizer package works: it descends, resumes and follows rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fields.cases import tiny_image_task
from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress, find_optimizer, option_prefix, register_family
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.fields import ImageTask
from splatopt.optim import zoo
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.zoo import REFUSED, ZooOptions, find_zoo, zoo_names

package = pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")

NAMED = ("muon", "soap", "fadam", "gravity", "kron", "sam", "lion", "schedulefreeadamw", "alig")
"""Those of the issue's list and one of each way to be fed; all others are tested where slow tests run."""

NEEDS = {"ranger21": ("num_iterations=200",)}
"""Settings without which they cannot be made."""

SLOW_STARTERS = {name for name in zoo_names() if name.startswith("dadapt")} | {"prodigy"}
"""They find their rate as they go, from 1e-6 upwards, and want no other than their own."""

ALL = [name if name in NAMED else pytest.param(name, marks=pytest.mark.slow) for name in sorted({*NAMED, *zoo_names()})]


def single_task():
    """In single precision: some of the package know no other."""
    task = tiny_image_task("sine", width=8)
    return ImageTask(task.module.float(), task.image.float())


def make(name, objective, seed=3, **options):
    entry = find_zoo(name)
    settings = {"settings": NEEDS.get(name, ()), **options}
    return entry.optimizer(objective, entry.options(**settings), torch.Generator().manual_seed(seed))


def take(optimizer, first, count, batch):
    for step in range(first, first + count):
        optimizer.step(batch, Progress(step, 200))


@pytest.mark.parametrize("name", ALL)
def test_it_lowers_a_field_and_goes_on_bit_exactly(name):
    batch = torch.arange(36)
    best = float("inf")
    for rate in (None,) if name in SLOW_STARTERS else (None, 1e-3, 1e-2, 1e-1):
        task = single_task()
        before = task.gradient(batch).loss
        optimizer = make(name, task, rate=rate)
        take(optimizer, 0, 5, batch)
        saved, drawn = optimizer.state(), optimizer.generator.get_state()
        kept = {key: value.clone() for key, value in saved.tensors.items()}
        state = OptimizerState(kept, json.loads(json.dumps(saved.scalars)))
        twin = single_task()
        for key, value in twin.parameters.items():
            value.copy_(task.parameters[key])
        resumed = make(name, twin, rate=rate)
        resumed.load_state(state)
        resumed.generator.set_state(drawn)
        take(optimizer, 5, 5, batch)
        take(resumed, 5, 5, batch)
        for key, value in task.parameters.items():
            assert torch.equal(value, twin.parameters[key]), key
        take(optimizer, 10, 590 if name in SLOW_STARTERS else 90, batch)
        best = min(best, task.gradient(batch).loss / before)
        if best < 0.9:
            return
    assert best < 0.9


@pytest.mark.parametrize("name", ALL)
def test_it_follows_edits_of_rows(name):
    objective = Quadratic()
    optimizer = make(name, objective)
    take(optimizer, 0, 3, None)
    edit = SceneEdit(torch.tensor([4, 0, 0, 2]), torch.tensor([False, False, True, False]))
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    take(optimizer, 3, 3, None)
    assert all(torch.isfinite(value).all() for value in objective.parameters.values())
    assert objective.parameters["means"].shape == (4, 3)


def test_what_an_optimizer_draws_comes_from_the_run_and_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3)
    expected_of_numpy = np.random.random(3)
    ends = []
    for seed in (1, 1, 2):
        torch.manual_seed(5)
        np.random.seed(5)
        task = single_task()
        # It draws its noise from PyTorch's generator, and from NumPy's whether to balance its factors.
        optimizer = make("kron", task, seed=seed, rate=1e-2, settings=("balance_prob=0.5",))
        take(optimizer, 0, 20, torch.arange(36))
        assert torch.equal(torch.rand(3), expected)
        assert np.array_equal(np.random.random(3), expected_of_numpy)
        ends.append(torch.cat([value.reshape(-1) for value in task.parameters.values()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


class Cloud(Quadratic):
    """Parameters with the names of a Gaussian cloud's."""

    def __init__(self):
        super().__init__()
        shape = self.values["means"].shape
        generator = torch.Generator().manual_seed(0)
        names = AdamOptions().rates(1.0, Progress(0, 1))
        self.values = {name: torch.randn(shape, generator=generator) for name in names}
        self.targets = {name: value + 1 for name, value in self.values.items()}
        self.curvature = {name: torch.ones(shape) for name in names}


def test_gaussians_have_the_rates_of_3dgs_times_a_factor():
    objective = Cloud()
    before = {name: value.clone() for name, value in objective.parameters.items()}
    optimizer = make("signsgd", objective, rate_factor=0.5, settings=("momentum=0.0",))
    optimizer.step(None, Progress(100, 200))
    rates = AdamOptions().rates(objective.length_scale, Progress(100, 200))
    for name, value in objective.parameters.items():
        assert torch.allclose((value - before[name]).abs(), torch.tensor(0.5 * rates[name]), atol=3e-7), name


def test_muon_orthogonalises_matrices_alone():
    task = single_task()
    groups = make("muon", task).torch.param_groups
    marked = {id(p): group["use_muon"] for group in groups for p in group["params"]}
    assert {name: marked[id(leaf)] for name, leaf in task.leaves.items()} == {
        name: leaf.dim() == 2 for name, leaf in task.leaves.items()
    }


def test_the_packages_own_rademacher_probes_have_both_signs():
    """One release drew -1 always; nothing of ours relies on it, and what would is refused."""
    assert {"adahessian", "sophiah"} <= REFUSED.keys()
    p = torch.nn.Parameter(torch.zeros(1000))
    p.grad = torch.autograd.grad((p**4 + p**2).sum(), p, create_graph=True)[0]
    seen = []
    original = torch.randint_like

    def note(*arguments, **settings):
        seen.append(original(*arguments, **settings))
        return seen[-1]

    torch.randint_like = note
    try:
        torch.manual_seed(0)
        package.AdaHessian([p], hessian_distribution="rademacher").step()
    finally:
        torch.randint_like = original
    assert set((seen[0] * 2 - 1).tolist()) == {-1.0, 1.0}


# ---------------------------------------------------------------------- names and settings


def test_the_registry_finds_the_family():
    entry = find_optimizer("zoo:Lion")
    assert entry.optimizer.member == "lion"
    assert entry.options is ZooOptions
    assert (option_prefix("zoo:lion"), option_prefix("adam")) == ("zoo", "adam")
    with pytest.raises(InputError, match=r"'adm'.*did you mean adam"):
        find_optimizer("zoo:adm")
    with pytest.raises(ValueError, match="'zoo' is registered already"):
        register_family("zoo", find_zoo)


def test_what_is_refused_is_refused_with_the_reason():
    for name, reason in REFUSED.items():
        assert name not in zoo_names()
        with pytest.raises(InputError) as caught:
            find_optimizer(f"zoo:{name}")
        assert reason in str(caught.value)
    assert set(REFUSED) <= set(package.get_supported_optimizers()), "nothing is refused that is not there"


def test_a_missing_package_is_said_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match=r"pip install 'splatopt\[zoo\]'"):
        zoo.zoo_names()


def test_settings_are_values_by_name():
    options = ZooOptions(settings=("betas=[0.8,0.9]", "weight_decay=0.5", "mode=fast", "on=true"))
    expected = {"betas": (0.8, 0.9), "weight_decay": 0.5, "mode": "fast", "on": True}
    assert options.keywords() == expected
    assert options.settings == ("betas=[0.8,0.9]", "weight_decay=0.5", "mode=fast", "on=true")
    group = make("adamw", Quadratic(), rate=0.5, settings=("betas=[0.8,0.9]",)).torch.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.5, (0.8, 0.9))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rate": 0.0}, "rate"), ({"rate_factor": -1.0}, "rate_factor"), ({"settings": ("lr",)}, "NAME=VALUE")],
)
def test_nonsense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ZooOptions(**options)


def test_settings_that_do_not_fit_are_refused_in_a_sentence():
    with pytest.raises(InputError, match=r"zoo:lion has no setting 'weight_deacy'; did you mean weight_decay"):
        make("lion", Quadratic(), settings=("weight_deacy=1",))
    with pytest.raises(InputError, match=r"zoo:lion cannot be made.*--zoo.settings"):
        make("lion", Quadratic(), settings=("betas=[2.0,3.0]",))
    with pytest.raises(InputError, match=r"zoo:ranger21 cannot be made.*num_iterations"):
        make("ranger21", Quadratic(), settings=())


def test_a_rate_of_another_name_is_set_and_one_that_is_not_used_is_refused():
    optimizer = make("alig", Quadratic(gaussians=True), rate_factor=2.0)
    optimizer.step(None, Progress(0, 200))
    rates = {name: group["max_lr"] for name, group in zip(optimizer._order, optimizer.torch.param_groups, strict=True)}
    assert rates == {name: 2 * rate for name, rate in AdamOptions().rates(10.0, Progress(0, 200)).items()}
    with pytest.raises(InputError, match=r"zoo:a2grad keeps no rate; leave --zoo.rate out"):
        make("a2grad", Quadratic(), rate=0.1)


def test_what_is_saved_beside_states_and_groups_follows_an_edit():
    optimizer = make("ranger21", Quadratic())
    take(optimizer, 0, 3, None)
    edit = SceneEdit.keep(torch.arange(8) < 5)
    optimizer.objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    assert optimizer.torch.lookahead_step == 3


def test_states_lie_row_by_row_as_a_checkpoint_keeps_them():
    optimizer = make("splus", Quadratic())
    take(optimizer, 0, 2, None)
    kept = [value for state in optimizer.torch.state.values() for value in state.values()]
    assert all(value.is_contiguous() for value in kept if isinstance(value, torch.Tensor))


def test_a_rate_that_would_do_nothing_is_refused_and_pythons_words_are_read():
    scene = Quadratic(gaussians=True)
    for given in ({"rate": 0.01}, {"settings": ("lr=0.01",)}):
        with pytest.raises(InputError, match="the rates of zoo:adan on a scene are those of 3DGS times"):
            make("adan", scene, **given)
    with pytest.raises(InputError, match="give --zoo.rate"):
        make("adan", single_task(), rate_factor=3.0)
    words = {"a=True": True, "b=False": False, "c=None": None, "d=[0.9,0.99]": (0.9, 0.99), "e=rms": "rms"}
    assert list(ZooOptions(settings=tuple(words)).keywords().values()) == list(words.values())
