"""What a picture's caption becomes each time it is seen, and that the text encoders are asked for no more than that."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import MODELS
from trainer.config import TrainConfig
from trainer.dataset.caption_rules import CaptionRules, with_wildcards
from trainer.dataset.captions import without_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.scan import scan
from trainer.sdxl.base import open_base
from trainer.training.batches import Batches
from trainer.training.text_conditioning import (
    MAX_CACHED_PROMPTS,
    TextConditioner,
    TextModels,
    training_captions,
)

TAGS = ("ink", "cat", "sitting", "moon", "night")


def item(caption: str = ", ".join(TAGS), **facts) -> Item:
    return Item(**{"path": "/a.png", "caption": caption, "width": 64, "height": 64, "digest": "", **facts})


def drawn(times: int, of: Item | None = None, **settings) -> list[str]:
    rules = CaptionRules(TrainConfig(**settings))
    return [rules.at([of or item()], position)[0][0] for position in range(times)]


def tags(caption: str) -> list[str]:
    return caption.split(", ")


def test_captions_stay_as_they_are_unless_asked():
    assert set(drawn(20)) == {item().caption}
    assert drawn(1, item("{a|b} c")) == ["{a|b} c"]


def test_shuffling_keeps_all_tags_and_the_first_ones_in_place():
    found = drawn(200, shuffle_tags=True, keep_tokens=2)
    assert all(
        tags(caption)[:2] == ["ink", "cat"] and sorted(tags(caption)) == sorted(TAGS) for caption in found
    )
    assert len(set(found)) == 6  # all orders of the other three


def test_tags_are_left_out_at_the_rate_asked_for_but_never_the_trigger_word_or_kept_ones():
    seen = item("cat, ink, sitting, moon, night")
    found = [tags(caption) for caption in drawn(2000, seen, trigger="Ink", tag_dropout=0.3, keep_tokens=1)]
    for tag, share in (("cat", 1.0), ("ink", 1.0), ("sitting", 0.7), ("moon", 0.7), ("night", 0.7)):
        assert sum(tag in caption for caption in found) / len(found) == pytest.approx(share, abs=0.04)
    order = ["cat", "ink", "sitting", "moon", "night"]
    assert all(caption == sorted(caption, key=order.index) for caption in found)


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(0, 6), st.booleans())
def test_the_same_seed_and_place_draw_the_same_caption(seed: int, dropout: float, keep: int, shuffle: bool):
    config = TrainConfig(seed=seed, tag_dropout=dropout, keep_tokens=keep, shuffle_tags=shuffle)
    once, again = (CaptionRules(config).at([item(), item()], 7) for _ in range(2))
    assert once == again and all(tags(caption)[:keep] == list(TAGS[:keep]) for caption, _ in once if keep)


def test_other_seeds_and_rows_draw_other_captions():
    rules = [CaptionRules(TrainConfig(seed=seed, shuffle_tags=True)) for seed in (0, 1)]
    assert [rules[0].at([item()], p) for p in range(8)] != [rules[1].at([item()], p) for p in range(8)]
    assert len({caption for caption, _ in rules[0].at([item()] * 12, 0)}) > 1


def test_each_line_of_a_caption_file_is_drawn_when_asked(tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat\n\n  a sitting   cat \nink, at night\n")
    found = scan(tmp_path, trigger="ink").items[0]
    assert found.caption == "a cat a sitting cat ink, at night"
    assert found.captions == ("ink, a cat", "ink, a sitting cat", "ink, at night")
    assert set(drawn(60, found, caption_lines=True)) == set(found.captions)
    assert set(drawn(60, found)) == {found.caption}
    manifest = Manifest(folder="", items=(found,))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_wildcards_draw_each_word_alike_often_inner_ones_first():
    found = drawn(3000, item("a {red|{dark|light} blue} cat"), wildcards=True)
    counts = {caption: found.count(caption) / len(found) for caption in set(found)}
    assert counts == pytest.approx(
        {"a red cat": 0.5, "a dark blue cat": 0.25, "a light blue cat": 0.25}, abs=0.04
    )


@given(st.text(max_size=60))
def test_wildcards_end_on_any_text(text: str):
    found = with_wildcards(text, random.Random(0))
    assert not ("{" in found and "}" in found[found.index("{") :])


def test_prefix_and_suffix_stand_around_every_caption_but_not_class_captions():
    around = {
        "caption_prefix": "art of",
        "caption_suffix": "on paper",
        "shuffle_tags": True,
        "tag_dropout": 1.0,
    }
    assert set(drawn(9, **around, trigger="ink")) == {"art of ink on paper"}
    assert drawn(1, item("a dog", role="class"), **around) == ["a dog"]


@pytest.mark.parametrize(
    "caption, rest",
    [
        ("ink, a cat", "a cat"),
        ("a cat by ink, night", "a cat by, night"),
        ("an inkpot", "an inkpot"),
        ("INK", ""),
    ],
)
def test_the_class_caption_is_the_caption_without_the_trigger_word(caption: str, rest: str):
    assert without_trigger(caption, "ink") == rest
    assert CaptionRules(TrainConfig(trigger="ink")).class_caption(item(caption)) == rest


def test_a_share_of_the_pictures_asks_the_base_with_the_class_caption():
    rules = CaptionRules(TrainConfig(base_prior_share=0.25, prior_caption="a cat", trigger="ink"))
    found = [rules.at([item()], position)[0] for position in range(2000)]
    assert sum(keeps for _, keeps in found) / 2000 == pytest.approx(0.25, abs=0.03)
    assert {caption for caption, keeps in found if keeps} == {"a cat"}
    assert {caption for caption, keeps in found if not keeps} == {item().caption}


def batches_of(*items: Item, seed: int = 0) -> Batches:
    return Batches(items, ((64, 64),) * len(items), 2, seed)


def test_exactly_the_captions_that_a_training_draws_are_prepared():
    items = tuple(item(f"{name}, a, b, c, d") for name in ("x", "y", "z"))
    rules, batches = (
        CaptionRules(TrainConfig(shuffle_tags=True, base_prior_share=0.2, trigger="x")),
        batches_of(*items),
    )
    prepared = training_captions(rules, batches, 25)
    asked = {
        caption
        for position in range(25)
        for caption, _ in rules.at([items[row] for row in batches.at(position)], position)
    }
    assert prepared == asked and len(asked) > 20


def test_without_variation_every_caption_is_prepared_however_short_the_training():
    items = (item("a"), item("b", role="class"))
    assert training_captions(CaptionRules(TrainConfig(caption_prefix="p")), batches_of(*items), 1) == {
        "p a",
        "b",
    }


def test_too_many_captions_to_remember_are_not_prepared():
    rules = CaptionRules(TrainConfig(shuffle_tags=True))
    batches = batches_of(item(", ".join("abcdefghij")), item(", ".join("klmnopqrst")))
    assert training_captions(rules, batches, MAX_CACHED_PROMPTS // 4) is not None
    assert training_captions(rules, batches, MAX_CACHED_PROMPTS * 2) is None


def test_what_is_read_as_it_comes_does_not_depend_on_what_was_read_before(monkeypatch):
    base = open_base("tiny-sdxl", MODELS)
    models = TextModels(base, torch.device("cpu"))
    monkeypatch.setattr("trainer.training.text_conditioning.MAX_CACHED_PROMPTS", 2)
    conditioner = TextConditioner({}, models)
    before = conditioner.encode(["a star", "a cat", "an owl", "a star"])  # more than are remembered
    assert len(conditioner.cached) == 2
    fresh = TextConditioner({}, models).encode(["a star"])
    for row in (0, 3):
        assert torch.equal(before.text_NTD[row], fresh.text_NTD[0]) and torch.equal(
            before.pooled_NP[row], fresh.pooled_NP[0]
        )
    assert not torch.equal(before.text_NTD[0], before.text_NTD[1])
