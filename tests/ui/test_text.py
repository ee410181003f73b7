"""The sentences of the page: complete in every language, with the same placeholders."""

from __future__ import annotations

import string
import tomllib
from pathlib import Path

import pytest

import ui.text
from trainer.dataset.checks import KINDS, RECOMMENDED_PICTURES, Finding
from ui.text import LANGUAGES, Words, preferred, sentences
from ui.views.artwork import finding_words
from ui.views.settings_form import declared_sentences

HERE = Path(ui.text.__file__).parent


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_language_has_all_sentences_and_no_others(language: str):
    english, translated = sentences("en") | declared_sentences(), sentences(language)
    assert set(english) - set(translated) == set(), "not translated"
    assert set(translated) - set(english) == set(), "not used"
    wrong = {
        key: text for key, text in translated.items() if placeholders(text) != placeholders(english[key])
    }
    assert not wrong
    assert not [key for key, text in translated.items() if not text.strip()]


def test_english_settings_are_declared_by_the_config_alone():
    assert declared_sentences()
    assert not [key for key in sentences("en") if key.startswith("settings.")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_file_of_sentences_is_flat(language: str):
    for path in (HERE / language).glob("*.toml"):
        assert all(
            isinstance(text, str) for text in tomllib.loads(path.read_text(encoding="utf-8")).values()
        ), path.name


@pytest.mark.parametrize(
    ("accept_language", "language"),
    [
        ("ja", "ja"),
        ("de-CH,de;q=0.9,en;q=0.8", "de"),
        ("pt,fr;q=0.5", "fr"),
        ("en;q=0.1,zh-TW", "zh"),
        ("", "en"),
        ("xx;q=y,,*;q=1", "en"),
        ("FR", "fr"),
    ],
)
def test_the_browsers_preferred_language_is_chosen(accept_language: str, language: str):
    assert preferred(accept_language) == language


def test_a_missing_translation_is_shown_in_english():
    assert Words("xx")("page.train") == sentences("en")["page.train"]


def test_english_findings_are_declared_by_the_checks_alone():
    declared = tomllib.loads((HERE / "en" / "artwork.toml").read_text(encoding="utf-8"))
    assert not [key for key in declared if key.startswith("found_")]
    assert all(f"artwork.found_{kind}" in sentences("en") for kind in KINDS)


def test_the_finding_of_few_pictures_names_the_preset_in_the_visitors_language():
    for preset, fewest in RECOMMENDED_PICTURES.items():
        finding = Finding("few", values={"count": 1, "preset": preset, "fewest": fewest})
        assert finding_words(Words("en"), finding) == finding.sentence
        for language in set(LANGUAGES) - {"en"}:
            words = Words(language)
            assert words(f"train.{preset}") in finding_words(words, finding)
