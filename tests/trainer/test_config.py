from __future__ import annotations

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from trainer.config import TrainConfig, config_from, settings_table, to_toml
from trainer.errors import ConfigError
from trainer.presets import PRESETS, preset_values


def test_a_config_survives_its_toml():
    config = TrainConfig(name="löwe", rank=7, sample_prompts=("a, b", 'say "hi"'), train_text_encoder_2=True)
    assert config_from(tomllib.loads(to_toml(config))) == config


def test_every_setting_explains_itself():
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["label"] and field.metadata["help"], field.name


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as told:
        TrainConfig(rank=0, optimizer="sgd", steps=-1)
    assert len(told.value.problems) == 3


def test_an_unknown_setting_is_an_error():
    with pytest.raises(ConfigError, match="'rnak' is no setting"):
        config_from({"rnak": 4})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1e-3", None])
def test_a_learning_rate_must_be_a_number(value):
    with pytest.raises(ConfigError):
        config_from({"learning_rate": value})


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a\0b", "C:x", "x" * 201, "é" * 101])
def test_a_name_must_be_a_file_name(name):
    with pytest.raises(ConfigError):
        config_from({"name": name})


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())),
    )
)
def test_any_values_make_a_config_or_a_config_error(values):
    try:
        config = config_from(values)
    except ConfigError:
        return
    assert config_from(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pictures", [1, 24, 5000])
def test_presets_are_valid_for_any_number_of_pictures(preset, pictures):
    assert config_from(preset_values(preset, pictures)).preset == preset


def test_a_preset_follows_what_is_said():
    values = preset_values("style", 24, {"steps": 20, "optimizer": "prodigy", "rank": 8})
    config = config_from(values)
    assert (config.steps, config.warmup_steps, config.rank) == (20, 1, 8)
    assert config.learning_rate == config.text_encoder_1_learning_rate == 1.0
    assert preset_values("style", 24, {"learning_rate": 0.5, "optimizer": "prodigy"})["learning_rate"] == 0.5


def test_the_settings_page_is_up_to_date():
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_numbers_in_a_refusal_are_written_out():
    with pytest.raises(ConfigError, match=r"seed must be from 0 to 2147483647, not 3000000000$"):
        config_from({"seed": 3_000_000_000})
    with pytest.raises(ConfigError, match=r"learning_rate must be from .* to 10, not 1e\+30$"):
        config_from({"learning_rate": 1e30})


@pytest.mark.parametrize(
    "setting",
    [{"trigger": "a\0b"}, {"trigger": "ink\udcff"}, {"name": "x\udcff"}, {"sample_prompts": ("a\udcff",)}],
)
def test_letters_that_no_file_can_hold_are_refused(setting):
    """A shell gives half characters for bytes that are no UTF-8; the run's files could not be written with them."""
    (name,) = setting
    with pytest.raises(ConfigError, match=name):
        config_from(setting)
