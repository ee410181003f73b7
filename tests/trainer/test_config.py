"""Settings: declaration, validation, TOML, docs, and acceptance of everything that version 0.1 accepted."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from trainer.__main__ import app
from trainer.config import TrainConfig, config_from, kind_of, settings_table, to_toml
from trainer.config.presets import PRESETS, preset_values
from trainer.errors import ConfigError

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
# Settings and command-line options of version 0.1 (commit 5e00336), recorded from its declarations.
ACCEPTED = json.loads((ROOT / "tests" / "trainer" / "accepted_0_1.json").read_text(encoding="utf-8"))


# Version 0.1 rejected these values too, unless other settings were set with them.
NEEDED_WITH: dict[str, dict[str, Any]] = {
    "optimizer custom": {"optimizer_class": "torch.optim.SGD"},
    "optimizer schedulefree": {"schedule": "constant"},
}


def options_of(command: Any, path: str = "") -> dict[str, list[str]]:
    """Flags of every command, by its name: `train`, `lora bake` and so on."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        options = (option for option in command.params if type(option).__name__ == "TyperOption")
        return {path: [flag for option in options for flag in (*option.opts, *option.secondary_opts)]}
    by_command: dict[str, list[str]] = {}
    for name, subcommand in subcommands.items():
        by_command |= options_of(subcommand, f"{path} {name}".strip())
    return by_command


def values_accepted_by(recorded: dict[str, Any]) -> list[Any]:
    """Values at the edges of what version 0.1 accepted for a setting."""
    if recorded["choices"]:
        return recorded["choices"]
    if recorded["low"] is not None:
        kind = {"int": int, "float": float}[recorded["type"]]
        return [kind(recorded["low"]), kind(recorded["high"])]
    return [recorded["default"]]


def test_settings_of_version_0_1_keep_their_order_and_defaults():
    assert [name for name in FIELDS if name in ACCEPTED["settings"]] == list(ACCEPTED["settings"])
    for name, recorded in ACCEPTED["settings"].items():
        default = FIELDS[name].default
        assert (list(default) if isinstance(default, tuple) else default) == recorded["default"], name


@pytest.mark.parametrize("name", ACCEPTED["settings"])
def test_every_value_of_version_0_1_is_accepted(name: str):
    for value in values_accepted_by(ACCEPTED["settings"][name]):
        config_from({name: value, **NEEDED_WITH.get(f"{name} {value}", {})})


def test_a_config_of_version_0_1_with_a_gradient_checkpointing_switch_is_accepted():
    assert config_from({"gradient_checkpointing": True}).gradient_checkpointing == "all"
    assert config_from({"gradient_checkpointing": False}).gradient_checkpointing == "none"


def test_every_command_line_option_of_version_0_1_exists():
    options = options_of(typer.main.get_command(app))
    assert set(ACCEPTED["options"]) <= set(options)
    for command, flags in ACCEPTED["options"].items():
        assert set(flags) <= set(options[command]), command


def test_a_config_survives_a_round_trip_through_toml():
    config = TrainConfig(name="löwe", rank=7, sample_prompts=("a, b", 'say "hi"'), train_text_encoder_2=True)
    assert config_from(tomllib.loads(to_toml(config))) == config


def test_every_setting_has_a_label_and_a_help_text():
    for field in FIELDS.values():
        assert field.metadata["label"], field.name
        assert field.metadata["help"], field.name


def test_every_default_has_the_type_of_its_setting():
    hints = typing.get_type_hints(TrainConfig)
    for name, field in FIELDS.items():
        assert kind_of(field) is (typing.get_origin(hints[name]) or hints[name]), name


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(rank=0, optimizer="sgd", steps=-1)
    assert len(caught.value.problems) == 3


def test_an_unknown_setting_is_an_error_that_suggests_a_similar_one():
    with pytest.raises(ConfigError, match=r"unknown setting 'rnak'; did you mean rank\?"):
        config_from({"rnak": 4})
    with pytest.raises(ConfigError, match=r"unknown setting 'xyzzy'; docs/settings.md lists all settings"):
        config_from({"xyzzy": 4})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1e-3", None, 10**400])
def test_a_learning_rate_must_be_a_number(value: Any):
    with pytest.raises(ConfigError):
        config_from({"learning_rate": value})


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a\0b", "C:x", "x" * 201, "é" * 101])
def test_a_name_must_be_a_file_name(name: str):
    with pytest.raises(ConfigError):
        config_from({"name": name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_ranks", "4,4"),
        ("block_ranks", ",".join(["4.5"] * 23)),
        ("block_rates", ",".join(["x"] * 23)),
        ("block_rates", ",".join(["-1"] * 23)),
        ("resolution", 63),
        ("resolutions", [32, 1024]),
    ],
)
def test_a_setting_with_a_rule_of_its_own_is_checked(name: str, value: Any):
    with pytest.raises(ConfigError, match=name):
        config_from({name: value})


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())),
    )
)
def test_any_values_give_a_config_or_a_config_error(values: dict[str, Any]):
    try:
        config = config_from(values)
    except ConfigError:
        return
    assert config_from(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pictures", [1, 24, 5000])
def test_presets_are_valid_for_any_number_of_pictures(preset: str, pictures: int):
    assert config_from(preset_values(preset, pictures)).preset == preset


def test_values_of_the_user_override_a_preset():
    config = config_from(preset_values("style", 24, {"steps": 20, "optimizer": "prodigy", "rank": 8}))
    assert (config.steps, config.warmup_steps, config.rank) == (20, 1, 8)
    assert config.learning_rate == config.text_encoder_1_learning_rate == 1.0
    assert preset_values("style", 24, {"learning_rate": 0.5, "optimizer": "prodigy"})["learning_rate"] == 0.5


def test_the_settings_page_is_up_to_date():
    assert settings_table() == (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_numbers_in_an_error_message_are_written_out():
    with pytest.raises(ConfigError, match=r"seed must be from 0 to 2147483647, not 3000000000$"):
        config_from({"seed": 3_000_000_000})
    with pytest.raises(ConfigError, match=r"learning_rate must be from .* to 10, not 1e\+30$"):
        config_from({"learning_rate": 1e30})


@pytest.mark.parametrize(
    "setting",
    [{"trigger": "a\0b"}, {"trigger": "ink\udcff"}, {"name": "x\udcff"}, {"sample_prompts": ("a\udcff",)}],
)
def test_text_that_no_file_can_hold_is_rejected(setting: dict[str, Any]):
    """A shell passes bytes that are not UTF-8 as lone surrogates, which the run's files could not hold."""
    (name,) = setting
    with pytest.raises(ConfigError, match=name):
        config_from(setting)
