"""Random variation of captions, and the captions that are encoded before a training."""

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


def draw_captions(times: int, of: Item | None = None, **settings) -> list[str]:
    rules = CaptionRules(TrainConfig(**settings))
    return [rules.at([of or item()], position)[0][0] for position in range(times)]


def tags(caption: str) -> list[str]:
    return caption.split(", ")


def test_captions_do_not_vary_by_default():
    assert set(draw_captions(20)) == {item().caption}
    assert draw_captions(1, item("{a|b} c")) == ["{a|b} c"]


def test_shuffling_changes_only_the_order_of_tags_after_the_first():
    captions = draw_captions(200, shuffle_tags=True, keep_tokens=2)
    assert all(
        tags(caption)[:2] == ["ink", "cat"] and sorted(tags(caption)) == sorted(TAGS) for caption in captions
    )
    assert len(set(captions)) == 6  # all orders of the other three


def test_tag_dropout_has_its_rate_and_spares_the_trigger_and_the_first_tags():
    seen = item("cat, ink, sitting, moon, night")
    captions = [
        tags(caption) for caption in draw_captions(2000, seen, trigger="Ink", tag_dropout=0.3, keep_tokens=1)
    ]
    for tag, share in (("cat", 1.0), ("ink", 1.0), ("sitting", 0.7), ("moon", 0.7), ("night", 0.7)):
        assert sum(tag in caption for caption in captions) / len(captions) == pytest.approx(share, abs=0.04)
    order = ["cat", "ink", "sitting", "moon", "night"]
    assert all(caption == sorted(caption, key=order.index) for caption in captions)


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(0, 6), st.booleans())
def test_the_same_seed_and_position_draw_the_same_caption(
    seed: int, dropout: float, keep: int, shuffle: bool
):
    config = TrainConfig(seed=seed, tag_dropout=dropout, keep_tokens=keep, shuffle_tags=shuffle)
    once, again = (CaptionRules(config).at([item(), item()], 7) for _ in range(2))
    assert once == again
    assert all(tags(caption)[:keep] == list(TAGS[:keep]) for caption, _ in once if keep)


def test_other_seeds_and_rows_draw_other_captions():
    rules = [CaptionRules(TrainConfig(seed=seed, shuffle_tags=True)) for seed in (0, 1)]
    assert [rules[0].at([item()], p) for p in range(8)] != [rules[1].at([item()], p) for p in range(8)]
    assert len({caption for caption, _ in rules[0].at([item()] * 12, 0)}) > 1


def test_caption_lines_draws_each_line_of_a_caption_file(tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat\n\n  a sitting   cat \nink, at night\n")
    captions = scan(tmp_path, trigger="ink").items[0]
    assert captions.caption == "a cat a sitting cat ink, at night"
    assert captions.captions == ("ink, a cat", "ink, a sitting cat", "ink, at night")
    assert set(draw_captions(60, captions, caption_lines=True)) == set(captions.captions)
    assert set(draw_captions(60, captions)) == {captions.caption}
    manifest = Manifest(folder="", items=(captions,))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_wildcards_draw_alternatives_equally_often_inner_braces_first():
    captions = draw_captions(3000, item("a {red|{dark|light} blue} cat"), wildcards=True)
    counts = {caption: captions.count(caption) / len(captions) for caption in set(captions)}
    assert counts == pytest.approx(
        {"a red cat": 0.5, "a dark blue cat": 0.25, "a light blue cat": 0.25}, abs=0.04
    )


@given(st.text(max_size=60))
def test_wildcards_terminate_on_any_text(text: str):
    captions = with_wildcards(text, random.Random(0))
    assert not ("{" in captions and "}" in captions[captions.index("{") :])


def test_prefix_and_suffix_surround_every_caption_except_those_of_class_images():
    settings = {
        "caption_prefix": "art of",
        "caption_suffix": "on paper",
        "shuffle_tags": True,
        "tag_dropout": 1.0,
    }
    assert set(draw_captions(9, **settings, trigger="ink")) == {"art of ink on paper"}
    assert draw_captions(1, item("a dog", role="class"), **settings) == ["a dog"]


@pytest.mark.parametrize(
    ("caption", "rest"),
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


def test_base_prior_share_draws_the_class_caption_at_its_rate():
    rules = CaptionRules(TrainConfig(base_prior_share=0.25, prior_caption="a cat", trigger="ink"))
    captions = [rules.at([item()], position)[0] for position in range(2000)]
    assert sum(keeps for _, keeps in captions) / 2000 == pytest.approx(0.25, abs=0.03)
    assert {caption for caption, keeps in captions if keeps} == {"a cat"}
    assert {caption for caption, keeps in captions if not keeps} == {item().caption}


def batches_of(*items: Item, seed: int = 0) -> Batches:
    return Batches(items, ((64, 64),) * len(items), 2, seed)


def test_exactly_the_captions_that_a_training_draws_are_encoded_before_it():
    items = tuple(item(f"{name}, a, b, c, d") for name in ("x", "y", "z"))
    rules, batches = (
        CaptionRules(TrainConfig(shuffle_tags=True, base_prior_share=0.2, trigger="x")),
        batches_of(*items),
    )
    encoded = training_captions(rules, batches, 25)
    drawn_captions = {
        caption
        for position in range(25)
        for caption, _ in rules.at([items[row] for row in batches.at(position)], position)
    }
    assert encoded == drawn_captions
    assert len(drawn_captions) > 20


def test_without_variation_every_caption_is_encoded_before_a_training_of_any_length():
    items = (item("a"), item("b", role="class"))
    assert training_captions(CaptionRules(TrainConfig(caption_prefix="p")), batches_of(*items), 1) == {
        "p a",
        "b",
    }


def test_more_captions_than_the_cache_holds_are_not_encoded_before_the_training():
    rules = CaptionRules(TrainConfig(shuffle_tags=True))
    batches = batches_of(item(", ".join("abcdefghij")), item(", ".join("klmnopqrst")))
    assert training_captions(rules, batches, MAX_CACHED_PROMPTS // 4) is not None
    assert training_captions(rules, batches, MAX_CACHED_PROMPTS * 2) is None


def test_prompts_that_leave_the_cache_are_encoded_again_to_the_same_result(monkeypatch):
    base = open_base("tiny-sdxl", MODELS)
    models = TextModels(base, torch.device("cpu"))
    monkeypatch.setattr("trainer.training.text_conditioning.MAX_CACHED_PROMPTS", 2)
    conditioner = TextConditioner({}, models)
    before = conditioner.encode(["a star", "a cat", "an owl", "a star"])  # more than are remembered
    assert len(conditioner.cached) == 2
    fresh = TextConditioner({}, models).encode(["a star"])
    for row in (0, 3):
        assert torch.equal(before.text_NTD[row], fresh.text_NTD[0])
        assert torch.equal(before.pooled_NP[row], fresh.pooled_NP[0])
    assert not torch.equal(before.text_NTD[0], before.text_NTD[1])
