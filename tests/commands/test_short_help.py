"""Help in two lengths: what it shows, and that nothing is refused for not being shown."""

from __future__ import annotations

import re

import pytest

from splatopt.cli import main
from splatopt.commands import fit, train
from splatopt.fit.config import FitConfig
from splatopt.train.config import TrainConfig

FLAG = re.compile(r"(?<=[ ,])--[a-z][a-z0-9.-]+")


def flags(capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    """The options that a help explains."""
    assert main([*words]) == 0
    lines = [line.replace("│", " ") for line in capsys.readouterr().out.splitlines()]
    names = [line.strip().split("  ")[0] for line in lines if line.startswith("  -")]
    return {flag for name in names for flag in FLAG.findall(f" {name}")} - {"--help"}


@pytest.mark.parametrize(
    ("command", "config", "shown"), [("train", TrainConfig, train.SHOWN), ("fit", FitConfig, fit.SHOWN)]
)
def test_short_help_shows_what_people_use_and_whole_help_everything(capsys, command, config, shown):
    names = {setting.replace("_", "-") for setting in shown if setting != config.subject}
    expected = {f"--{name}" for name in names - {"plugins"}} | {"--plugin"}
    short, whole = flags(capsys, command, "--help"), flags(capsys, command, "--help-all")
    assert short - {"--start"} == expected
    assert len(short) <= 22
    assert short < whole
    hidden = {"resume", "optimizer_options", "loss_options", "density_options", "plugins", config.subject}
    assert {f"--{name.replace('_', '-')}" for name in config.setting_names() - hidden} <= whole


def test_every_name_that_is_shown_is_a_setting():
    assert set(train.SHOWN) - {"view"} <= TrainConfig.setting_names()
    assert set(fit.SHOWN) <= FitConfig.setting_names()


def test_short_help_says_where_the_rest_is(capsys):
    for command in ("train", "fit"):
        assert main([command, "--help"]) == 0
        assert f"`splatopt {command} --help-all` shows all" in capsys.readouterr().out
        assert main([command, "--help-all"]) == 0
        assert "shows all" not in capsys.readouterr().out


def test_short_help_explains_the_options_of_what_is_named(capsys):
    assert "--adam.means-rate" not in flags(capsys, "train", "--help")
    assert "--adam.means-rate" in flags(capsys, "train", "--optimizer", "adam", "--help")
    assert "--adc.until" in flags(capsys, "train", "--density", "adc", "-h")
    assert "--charbonnier.epsilon" in flags(capsys, "train", "--loss", "charbonnier", "--help")
    assert "--esgd.rate" in flags(capsys, "fit", "--optimizer", "esgd", "--help")


def test_an_option_that_short_help_hides_is_taken(capsys, tmp_path):
    missing = tmp_path / "nothing"
    for hidden in (["--log-every", "7"], ["--optimizer", "adam", "--adam.beta1", "0.8"]):
        assert main(["train", str(missing), *hidden]) == 2
        assert "nothing" in capsys.readouterr().err, "the capture is what is wrong, not the option"
