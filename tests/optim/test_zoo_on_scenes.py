"""What is handed out of the pytorch-optimizer package works on a rendered scene, and on fields of the usual width."""

from __future__ import annotations

import json

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.objective import Tensors
from splatopt.core.optimizer import Optimizer, Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.core.state import OptimizerState
from splatopt.data.synthetic.scene import SceneOptions, make_scene
from splatopt.fields import ImageTask
from splatopt.fields.networks import Architecture
from splatopt.fields.registry import make_field
from splatopt.optim.dry_run import CountedMemory
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.zoo import REFUSED_ON_SCENES, ZooOptions, find_zoo, zoo_names
from splatopt.optim.zoo_wrappers import REFUSED_WRAPPERS, WRAPPERS
from splatopt.raster.cpu import NativeRenderer
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.config import TrainConfig
from splatopt.train.setup import make_objective, starting_cloud

pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")

STEPS = 40
WRAPPED = [f"{wrapper}+{member}" for wrapper in WRAPPERS for member in ("adam", "lion")]
NAMED = ("prodigy", "kron", "schedulefreeadamw", "lookahead+adam", "looksam+adam", "schedulefree+adam")
"""One of each kind; all others are tried where slow tests run."""

ON_SCENES = [
    name if name in NAMED else pytest.param(name, marks=pytest.mark.slow)
    for name in (*(name for name in zoo_names() if name not in REFUSED_ON_SCENES), *WRAPPED)
]

MOVES_LITTLE = 0.9995
"""Those with steps of the gradient's own length lower a scene by a thousandth in so many steps at 3DGS' rates."""


@pytest.fixture(scope="module")
def capture():
    return make_scene(3, SceneOptions(side=48, views=10, points=600))


@pytest.fixture
def scene(capture) -> PhotometricObjective:
    """Some two hundred Gaussians, rendered on one thread."""
    config = TrainConfig.of("none", sh_degree=1, sh_interval=0)
    cloud = starting_cloud(config, capture, torch.Generator().manual_seed(0), [])
    assert 100 < len(cloud) < 400
    return make_objective(config, capture, cloud, NativeRenderer(threads=1))


def make(name: str, objective: PhotometricObjective) -> Optimizer:
    options = ZooOptions(settings=("num_iterations=200",) if name == "ranger21" else ())
    return find_zoo(name).optimizer(objective, options, torch.Generator().manual_seed(1))


def take(optimizer: Optimizer, views: tuple[int, ...], first: int, count: int) -> None:
    for step in range(first, first + count):
        optimizer.step((views[(7 * step) % len(views)],), Progress(step, 200))


def mean_loss(objective: PhotometricObjective, views: tuple[int, ...]) -> float:
    return sum(objective.gradient((view,)).loss for view in views) / len(views)


def copied(parameters: Tensors) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in parameters.items()}


@pytest.mark.parametrize("name", ON_SCENES)
def test_it_lowers_a_scene_goes_on_bit_exactly_and_lets_new_rows_be(name, scene, capture):
    views = tuple(capture.split.train)
    before = mean_loss(scene, views)
    optimizer = make(name, scene)
    take(optimizer, views, 0, 20)
    saved, drawn, values = optimizer.state(), optimizer.generator.get_state(), copied(scene.parameters)
    state = OptimizerState(copied(saved.tensors), json.loads(json.dumps(saved.scalars)))
    take(optimizer, views, 20, STEPS - 20)
    ends = copied(scene.parameters)
    assert mean_loss(scene, views) < MOVES_LITTLE * before

    for key, value in values.items():
        scene.parameters[key].copy_(value)
    resumed = make(name, scene)
    resumed.load_state(state)
    resumed.generator.set_state(drawn)
    take(resumed, views, 20, STEPS - 20)
    for key, value in ends.items():
        assert torch.equal(value, scene.parameters[key]), key

    count = len(scene.cloud)
    source = torch.cat([torch.arange(count), torch.arange(20)])
    fresh = torch.arange(len(source)) >= count + 10
    moved = torch.arange(count, count + 10)
    values = {"means": Written(moved, scene.parameters["means"][source[moved]] + 0.01)}
    edit = SceneEdit(source, fresh, values)
    scene.edit_rows(edit)
    resumed.edit_rows(edit)
    begun = copied(scene.parameters)
    take(resumed, views, STEPS, 3)
    rates = AdamOptions().rates(scene.length_scale, Progress(0, 200))
    for key, value in scene.parameters.items():
        steps = ((value - begun[key]).abs() / rates[key]).reshape(len(value), -1)
        old, new = steps[:count].max(), steps[count:].max()
        assert new <= 10 * old + 50, f"{key}: new rows move {new:.3g} rates, old ones {old:.3g}"


@pytest.mark.parametrize("name", REFUSED_ON_SCENES)
def test_what_cannot_work_on_a_scene_is_refused_with_its_reason(name, scene):
    with pytest.raises(InputError, match=f"zoo:{name} is not handed out for scenes: ") as caught:
        make(name, scene)
    assert str(caught.value).endswith(REFUSED_ON_SCENES[name])


def test_one_rate_for_all_is_found_in_units_of_each_types_own_rate(scene, capture):
    """Prodigy's first step is some of 3DGS' rates long in every type; round Gaussians have no gradient to turn."""
    rates = AdamOptions().rates(scene.length_scale, Progress(0, 200))
    optimizer = make("prodigy", scene)
    before = copied(scene.parameters)
    take(optimizer, tuple(capture.split.train), 0, 1)
    lengths = {
        key: float((value - before[key]).abs().max()) / rates[key]
        for key, value in scene.parameters.items()
        if key != "quats"
    }
    assert all(0.5 < length < 20 for length in lengths.values()), lengths


def test_schedule_free_scenes_rest_at_the_average(scene, capture):
    """Between steps the scene is x; gradients are taken at y = β x + (1-β) z."""
    views = tuple(capture.split.train)
    optimizer = make("schedulefreeadamw", scene)
    take(optimizer, views, 0, 5)
    leaf = optimizer._leaves["sh_dc"]
    z, x = optimizer.torch.state[leaf]["z"].clone(), scene.parameters["sh_dc"].clone()
    seen, original = [], scene.gradient

    def note(batch):
        seen.append(scene.parameters["sh_dc"].clone())
        return original(batch)

    scene.gradient = note
    take(optimizer, views, 5, 1)
    assert not torch.equal(z, x)
    torch.testing.assert_close(seen[0], 0.9 * x + 0.1 * z)


def test_wrappers_are_named_and_refused_in_sentences():
    assert find_optimizer("zoo:Lookahead+Adan").optimizer.wrapper == "lookahead"
    assert find_optimizer("zoo:sam").optimizer.wrapper == "sam"
    for name, reason in REFUSED_WRAPPERS.items():
        with pytest.raises(InputError, match=f"zoo:{name}\\+adam is not handed out: {name}: ") as caught:
            find_zoo(f"{name}+adam")
        assert reason in str(caught.value)
    for name, said in (
        ("lokahead+adam", "no wrapper 'lokahead'; did you mean lookahead"),
        ("lookahead+adm", "no 'adm'"),
        ("lookahead+alig", "takes the loss itself"),
        ("sam+sam", "a wrapper itself"),
        ("+adam", "no wrapper ''"),
        ("lookahead+", "no ''"),
        ("lookahead+lbfgs", "full batch"),
    ):
        with pytest.raises(InputError, match=said):
            find_zoo(name)


def test_a_setting_is_the_wrappers_where_it_knows_it(scene):
    options = ZooOptions(settings=("k=7", "betas=[0.5,0.6]"))
    optimizer = find_zoo("lookahead+adam").optimizer(scene, options, torch.Generator())
    assert optimizer.torch.outer.k == 7
    assert optimizer.torch.param_groups[0]["betas"] == (0.5, 0.6)
    with pytest.raises(InputError, match=r"zoo:lookahead\+adam has no setting 'kk'"):
        find_zoo("lookahead+adam").optimizer(scene, ZooOptions(settings=("kk=7",)), torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names())
def test_three_steps_on_a_field_of_the_usual_width_fit_a_laptop(name):
    """2 GiB at once, and half a minute."""
    generator = torch.Generator().manual_seed(0)
    task = ImageTask(
        make_field("sine", Architecture(2, 3, depth=1), generator), torch.rand(16, 16, 3, generator=generator)
    )
    with CountedMemory(2**31, seconds=30.0):
        optimizer = make(name, task)
        batch = torch.arange(64)
        for step in range(3):
            optimizer.step(batch, Progress(step, 200))
    assert all(torch.isfinite(value).all() for value in task.parameters.values())
