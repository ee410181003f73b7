"""The advanced settings: every setting as the config declares it."""

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

MAIN = {"name", "trigger", "preset", "pace", "base"}  # beside the Train button
TERMINAL = {"optimizer_class", "optimizer_args"}  # they run the code that they name


def html_fields(values: dict | None = None) -> dict[str, str]:
    """Returns setting -> HTML of its field."""
    page = form_html(
        Words(), "ink", values or {}, {"prior_folder": ["cats"], "start_from": [], "validation_folder": []}
    )
    return {
        field: text
        for text in page.split('<div class="field">')[1:]
        for field in re.findall(r' name="(\w+)"', text)
    }


def test_every_setting_has_a_field_unless_it_is_listed_above():
    assert set(html_fields()) == {field.name for field in dataclasses.fields(TrainConfig)} - MAIN - TERMINAL
    assert {field.metadata["group"] for field in dataclasses.fields(TrainConfig)} == set(TITLES)
    for name, text in html_fields().items():
        assert f'<label for="set-{name}">' in text
        assert f'aria-describedby="help-{name}"' in text
        assert f'id="help-{name}"' in text


def test_an_empty_field_leaves_its_setting_to_the_preset():
    assert settings_from({name: parsed_field(name, "") for name in html_fields()}) == {}


def test_a_field_shows_its_value_and_escapes_markup():
    evil = '"><img src=x onerror=alert(1)>'
    shown = html_fields(
        {"rank": 8, "learning_rate": 0.0003, "prior_folder": "gone", "title": evil, "network": "dora"}
    )
    assert 'value="8"' in shown["rank"]
    assert 'value="0.0003"' in shown["learning_rate"]
    assert '<option value="gone" selected>' in shown["prior_folder"]
    assert '<option value="dora" selected>' in shown["network"]
    assert "<img" not in "".join(shown.values())
    assert "&lt;img" in shown["title"]


@given(st.text(max_size=50))
def test_any_text_is_accepted_or_rejected_with_one_sentence(text: str):
    for name in ("rank", "learning_rate", "title", "sample_prompts"):
        try:
            value = parsed_field(name, text)
        except ConfigError as error:
            problem = str(error)
        else:
            assert isinstance(value, str) or math.isfinite(value)
            continue
        assert "write a" in problem or "letters" in problem


def filled(declared: dataclasses.Field):
    """Returns a value that the browser could send, and the setting that it must become."""
    metadata, kind = declared.metadata, kind_of(declared)
    if declared.name == "resolutions":
        return "128, 192", (128, 192)
    if declared.name in ("block_ranks", "block_rates"):
        return ",".join(["4"] * 23), ",".join(["4"] * 23)
    if metadata["choices"]:
        return metadata["choices"][-1], metadata["choices"][-1]
    if kind is bool:
        return "yes", True
    if kind in (int, float):
        # A browser may send whole numbers as floats and the other way round.
        high = metadata["high"]
        return (float(high), int(high)) if kind is int else (high, float(high))
    return ("a\n\n b ", ("a", "b")) if kind is tuple else (" words ", "words")


def test_filled_fields_reach_the_training():
    for declared in fields():
        sent, expected = filled(declared)
        assert settings_from({declared.name: sent}) == {declared.name: expected}, declared.name
        try:
            config = config_from(settings_from({declared.name: sent}))
        except ConfigError as error:  # some settings need another one too
            problem = str(error)
        else:
            assert getattr(config, declared.name) == expected
            continue
        assert declared.name in problem or declared.metadata["choices"], declared.name


def test_a_number_out_of_range_is_rejected_with_its_setting():
    with pytest.raises(ConfigError, match="rank must be from 1 to 1024, not 5000"):
        config_from(settings_from({"rank": 5000.0}))
