"""The Advanced section: every setting, as the config declares it."""

from __future__ import annotations

import dataclasses

import gradio as gr
import pytest

from trainer.config import TrainConfig, config_from, kind_of
from trainer.errors import ConfigError
from ui.build import translations
from ui.form import TITLES, build_form, fields, settings_from

ELSEWHERE = {"name", "trigger", "preset", "pace", "base"}  # beside the Train button
TERMINAL = {"optimizer_class", "optimizer_args"}  # run what they name


@pytest.fixture(scope="module")
def form() -> dict:
    with gr.Blocks():
        return build_form(translations())


def test_every_setting_is_on_the_page_or_has_a_reason_not_to_be(form):
    assert set(form) == {field.name for field in dataclasses.fields(TrainConfig)} - ELSEWHERE - TERMINAL
    assert {field.metadata["group"] for field in dataclasses.fields(TrainConfig)} == set(TITLES)


def test_what_is_left_empty_is_left_to_the_preset(form):
    assert settings_from({name: component.value for name, component in form.items()}) == {}


def filled(declared: dataclasses.Field):
    """A value that the browser could send, and what it should become."""
    facts, kind = declared.metadata, kind_of(declared)
    if declared.name == "resolutions":
        return "128, 192", (128, 192)
    if declared.name in ("block_ranks", "block_rates"):
        return ",".join(["4"] * 23), ",".join(["4"] * 23)
    if facts["choices"]:
        return facts["choices"][-1], facts["choices"][-1]
    if kind is bool:
        return "yes", True
    if kind in (int, float):
        # Whole numbers may arrive as floats and the other way round.
        high = facts["high"]
        return (float(high), int(high)) if kind is int else (high, float(high))
    return ("a\n\n b ", ("a", "b")) if kind is tuple else (" words ", "words")


def test_what_is_filled_in_reaches_the_training():
    for declared in fields():
        sent, meant = filled(declared)
        assert settings_from({declared.name: sent}) == {declared.name: meant}, declared.name
        try:
            config = config_from(settings_from({declared.name: sent}))
        except ConfigError as error:  # some go only together with another
            assert declared.name in str(error) or declared.metadata["choices"], declared.name
            continue
        assert getattr(config, declared.name) == meant


def test_a_number_out_of_range_is_refused_by_name():
    with pytest.raises(ConfigError, match="rank must be from 1 to 1024, not 5000"):
        config_from(settings_from({"rank": 5000.0}))
