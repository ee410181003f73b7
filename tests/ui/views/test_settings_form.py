"""The Advanced section: every setting, as the config declares it."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import TrainConfig, config_from, kind_of
from trainer.errors import ConfigError
from ui.text import Words
from ui.views.settings_form import TITLES, fields, form_html, parsed_field, settings_from

ELSEWHERE = {"name", "trigger", "preset", "pace", "base"}  # beside the Train button
TERMINAL = {"optimizer_class", "optimizer_args"}  # run what they name


def html_fields(values: dict | None = None) -> dict[str, str]:
    """Setting -> its field, as the page has it."""
    page = form_html(
        Words(), "ink", values or {}, {"prior_folder": ["cats"], "start_from": [], "validation_folder": []}
    )
    return {
        field: text
        for text in page.split('<div class="field">')[1:]
        for field in re.findall(r' name="(\w+)"', text)
    }


def test_every_setting_is_on_the_page_or_has_a_reason_not_to_be():
    assert (
        set(html_fields()) == {field.name for field in dataclasses.fields(TrainConfig)} - ELSEWHERE - TERMINAL
    )
    assert {field.metadata["group"] for field in dataclasses.fields(TrainConfig)} == set(TITLES)
    for name, text in html_fields().items():
        assert (
            f'<label for="set-{name}">' in text
            and f'aria-describedby="help-{name}"' in text
            and f'id="help-{name}"' in text
        )


def test_what_is_left_empty_is_left_to_the_preset():
    assert settings_from({name: parsed_field(name, "") for name in html_fields()}) == {}


def test_a_field_shows_what_was_said_and_nothing_said_is_markup():
    evil = '"><img src=x onerror=alert(1)>'
    shown = html_fields(
        {"rank": 8, "learning_rate": 0.0003, "prior_folder": "gone", "title": evil, "network": "dora"}
    )
    assert 'value="8"' in shown["rank"] and 'value="0.0003"' in shown["learning_rate"]
    assert (
        '<option value="gone" selected>' in shown["prior_folder"]
        and '<option value="dora" selected>' in shown["network"]
    )
    assert "<img" not in "".join(shown.values()) and "&lt;img" in shown["title"]


@given(st.text(max_size=50))
def test_whatever_is_typed_is_kept_or_refused_in_one_sentence(text: str):
    for name in ("rank", "learning_rate", "title", "sample_prompts"):
        try:
            kept = parsed_field(name, text)
        except ConfigError as error:
            assert "write a" in str(error) or "letters" in str(error)
        else:
            assert kept == "" or isinstance(kept, str) or math.isfinite(kept)


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
