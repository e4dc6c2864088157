"""Settings in groups: their names, their files, and what an older version wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from splatopt.core.checks import InputError
from splatopt.core.typed import field_names
from splatopt.fit.config import FitConfig
from splatopt.optim.first_order import AdamOptions
from splatopt.runs.config import RunConfig, SavingOptions, SettingGroup
from splatopt.runs.renamed import renamed, renamed_states
from splatopt.runs.resuming import is_as_asked, is_free
from splatopt.runs.unread import read_options
from splatopt.train.config import TrainConfig

SCENE, FIELD = TrainConfig.of("/data/fox"), FitConfig.of("/data/photo.png")


@pytest.mark.parametrize("config", [SCENE, FIELD])
def test_a_setting_has_one_name_over_all_groups(config):
    groups = [getattr(config, name) for name in sorted(field_names(type(config)))]
    assert all(isinstance(group, SettingGroup) for group in groups)
    names = [name for group in groups for name in field_names(type(group))]
    assert sorted(names) == sorted(type(config).setting_names())
    assert len(names) == len(set(names))


def test_a_name_in_two_groups_is_refused():
    @dataclass(frozen=True)
    class Twice(RunConfig):
        saving: SavingOptions = field(default_factory=SavingOptions)
        again: SavingOptions = field(default_factory=SavingOptions)

    with pytest.raises(TypeError, match="'out' is a setting of saving and of again"):
        Twice.setting_places()


def test_the_file_and_the_keywords_name_settings_without_groups():
    options = AdamOptions(sh_dc_rate=1.0)
    config = TrainConfig.of(
        "/data/fox", steps=7, downscale=2, max_side=0, out="runs/x", optimizer="adam", optimizer_options=options
    )
    assert (config.schedule.steps, config.data.downscale, config.folder) == (7, 2, Path("runs/x"))
    values = json.loads(json.dumps(config.to_json()))
    assert set(values) == TrainConfig.setting_names() - {"resume"}
    assert (values["steps"], values["downscale"], values["optimizer_options"]["sh_dc_rate"]) == (7, 2, 1.0)
    assert TrainConfig.from_json(values, "config.json") == config
    changed = config.changed(steps=9, threads=3)
    assert (changed.schedule.steps, changed.processes.threads, changed.data) == (9, 3, config.data)


@pytest.mark.parametrize(("kind", "subject"), [(TrainConfig, "capture"), (FitConfig, "target")])
def test_a_setting_that_there_is_not_is_refused(kind, subject):
    with pytest.raises(InputError, match="there is no setting 'stepz'; did you mean steps"):
        kind.of("x", stepz=3)
    with pytest.raises(InputError, match=f"there is no setting '{subject}'"):
        kind.of("x", **{subject: "y"})
    with pytest.raises(InputError, match=f"config.json: {subject} is missing"):
        kind.from_json({"steps": 3}, "config.json")


@pytest.mark.parametrize("config", [SCENE, FIELD])
def test_each_setting_says_whether_a_resumed_run_may_change_it(config):
    fields = {name: place.field for name, place in type(config).setting_places().items()}
    asked = {name for name, item in fields.items() if is_as_asked(item)}
    free = {name for name, item in fields.items() if is_free(item)}
    assert asked == {config.subject, "out", "resume"}
    assert {"steps", "threads", "log_every", "eval_at", "checkpoint_seconds", "max_memory"} <= free
    assert not {"seed", "optimizer", "optimizer_options", "test_every", "max_side"} & free


def test_a_file_of_version_0_1_is_read_under_the_names_of_today():
    values = SCENE.to_json()
    del values["init"]
    assert TrainConfig.from_json(values | {"start": "random"}, "config.json").scene.init == "random"
    with pytest.raises(InputError, match=r"--init must be sfm, random or the path of a scene file, got 'x'"):
        TrainConfig.from_json(values | {"start": "x"}, "config.json")


@dataclass(frozen=True)
class Renamed:
    max_step: float = 1.0
    min_step: float = 0.0
    most_of_all: int = 3


def test_options_that_began_with_most_and_least_begin_with_max_and_min():
    assert read_options({"most_step": 5.0, "least_step": 0.5}, lambda: Renamed, "here") == Renamed(5.0, 0.5)
    assert read_options({"most_of_all": 4}, lambda: Renamed, "here") == Renamed(most_of_all=4)
    assert renamed({"most_other": 1, "start": 2}, {"max_step"}) == {"most_other": 1, "start": 2}
    with pytest.raises(InputError, match="here: there is no option 'most_other'"):
        read_options({"most_other": 1}, lambda: Renamed, "here")


def test_states_of_optimizers_of_version_0_1_have_the_names_of_today():
    old = {"promise": 1.0, "promise.means": 2.0, "reach.turn": 3.0, "reach.0.factor": 4.0, "reach.1.promised": 5.0}
    assert renamed_states({**old, "kappa": 6.0, "met_views": 7.0, "promised": 8.0}, ("steps", "kappa")) == {
        "predicted": 1.0,
        "predicted.means": 2.0,
        "radius_factors.position": 3.0,
        "radius_factors.0.factor": 4.0,
        "radius_factors.1.predicted": 5.0,
        "kappa": 6.0,
        "visited_views": 7.0,
        "promised": 8.0,
    }


def test_states_of_other_optimizers_keep_their_names():
    theirs = {"reach.means": 1.0, "promise": 2.0}
    assert renamed_states(theirs, theirs) == theirs
