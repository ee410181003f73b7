"""Syntax of other tools in captions and prompts: training and preview read the same text the same way."""

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
from trainer.dataset.caption_rules import CaptionRules
from trainer.dataset.captions import with_trigger, without_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.scan import scan
from trainer.prompt_syntax import as_prompt, prompt_notes, read_caption, read_prompt
from trainer.sampling.images import GeneratedImage, save_image
from trainer.sampling.sampler import prompt_encoding
from trainer.sampling_config import SamplingConfig, parse_prompt_line, sampling_config_from
from trainer.sdxl.base import open_base
from trainer.sdxl.emphasis import parse_emphasis
from trainer.sdxl.text import encode, token_windows
from trainer.training.samples import sample_configs, sample_prompts_of
from trainer.training.text_conditioning import caption_encoding, sample_encoding


def item(caption: str, **fields) -> Item:
    return Item(**{"path": "/a.png", "caption": caption, "width": 64, "height": 64, "digest": "", **fields})


def draws(caption: str, times: int = 1000, **settings) -> list[str]:
    rules = CaptionRules(TrainConfig(**settings))
    return [rules.draw(item(caption), random.Random(number)) for number in range(times)]


VARIED = {"shuffle_tags": True, "tag_dropout": 0.5}


def test_a_trigger_of_several_tags_stays_whole_in_front():
    caption = with_trigger("owl, tree", "inkzz, ink drawing")
    captions = draws(caption, trigger="inkzz, ink drawing", **VARIED)
    assert all(text.startswith("inkzz, ink drawing") for text in captions)
    assert {text for text in captions} >= {
        "inkzz, ink drawing",
        "inkzz, ink drawing, owl, tree",
        "inkzz, ink drawing, tree, owl",
    }


def test_a_trigger_of_several_tags_is_added_and_removed_by_its_tags():
    trigger = "inkzz, ink drawing"
    assert with_trigger("owl, ink drawing, by inkzz", trigger) == "owl, ink drawing, by inkzz"
    assert with_trigger("owl, ink drawing", trigger) == "inkzz, ink drawing, owl"
    assert with_trigger("ink drawing", trigger) == "inkzz, ink drawing"
    assert without_trigger("inkzz, owl, ink drawing", trigger) == "owl"


def test_tags_before_the_separator_of_kohya_stay_in_front_and_those_after_a_second_at_the_end():
    captions = draws("1girl, frieren ||| solo, elf", **VARIED)
    assert all(text.startswith("1girl, frieren") and "|" not in text for text in captions)
    assert set(captions) == {
        f"1girl, frieren{rest}" for rest in ("", ", solo", ", elf", ", solo, elf", ", elf, solo")
    }
    captions = draws("1girl ||| solo, elf ||| best quality", keep_tokens=9, **VARIED)
    assert all(text.startswith("1girl, ") and text.endswith(", best quality") for text in captions)


def test_the_separator_is_never_read_by_the_text_encoders():
    assert draws("1girl, frieren ||| solo, elf", 1) == ["1girl, frieren, solo, elf"]
    assert draws("a|||b", 1) == ["a, b"]
    assert read_prompt("1girl ||| solo").prompt == "1girl, solo"
    rules = CaptionRules(TrainConfig(prior_caption="a ||| b"))
    assert rules.class_caption(item("x")) == "a, b"
    assert rules.draw(item("a ||| b", role="class"), random.Random(0)) == "a, b"
    assert rules.fixed(item("a ||| b")) == "a, b"


def test_a_longer_tag_with_the_trigger_is_never_dropped():
    captions = draws("owl, inkzz style, inkzzy", trigger="inkzz", tag_dropout=0.5)
    assert all("inkzz style" in text for text in captions)
    assert 0.4 < sum("inkzzy" in text for text in captions) / len(captions) < 0.6


ESCAPED = r"ganyu \(genshin impact\), \[x\]"


@pytest.mark.parametrize(
    "caption", [ESCAPED, "ganyu (genshin impact)", "a cat", "(word:1.2), [a]", "a ||| (b"]
)
def test_a_caption_as_sample_prompt_gives_the_conditioning_of_the_training(caption: str):
    config = TrainConfig()
    base = open_base("tiny-sdxl", MODELS)
    tokenizers = base.tokenizers()
    trained = CaptionRules(config).fixed(item(caption))
    (configs,) = sample_configs(config, Manifest(folder="", items=(item(caption),)), base)
    prompts = sample_prompts_of([configs])
    (sampled,) = configs[1].prompts
    encoding = sample_encoding(config, prompts, tokenizers[0])
    for tokenizer in tokenizers:
        assert token_windows(trained, tokenizer, caption_encoding(config)) == token_windows(
            sampled, tokenizer, encoding
        )
    # The prompt of the sample, pasted into `preview` or the page, is read in the same way.
    pasted = sampling_config_from({"prompts": [sampled]})
    assert prompt_encoding(pasted, tokenizers[0]) == encoding
    assert pasted.prompts == (sampled,)


def test_a_caption_with_escaped_brackets_gives_equal_conditioning_in_training_and_preview():
    config, base = TrainConfig(), open_base("tiny-sdxl", MODELS)
    tokenizers, encoders = base.tokenizers(), base.text_encoders(torch.device("cpu"), torch.float32)
    sampling = sampling_config_from({"prompts": [ESCAPED]})
    with torch.inference_mode():
        trained = encode([CaptionRules(config).fixed(item(ESCAPED))], tokenizers, encoders)
        encoding = prompt_encoding(sampling, tokenizers[0])
        previewed = encode(list(sampling.prompts), tokenizers, encoders, encoding)
        plain = encode(["ganyu (genshin impact), [x]"], tokenizers, encoders)
    assert torch.equal(trained.text_NTD, previewed.text_NTD)
    assert torch.equal(trained.pooled_NP, previewed.pooled_NP)
    assert torch.equal(trained.text_NTD, plain.text_NTD)


@given(st.text(alphabet="ab()[]\\:1.2, ", max_size=30))
def test_every_plain_caption_has_a_prompt_that_is_read_the_same(caption: str):
    plain = read_caption(caption, weighted=False)
    pieces = parse_emphasis(as_prompt(plain))
    assert all(weight == 1.0 for _, weight in pieces)
    assert "".join(text for text, _ in pieces) == plain


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("a cat <lora:ink:1>", "a cat"),
        ("a cat, <lora:ink:0.8>, night", "a cat, night"),
        ("<lyco:x:1:0.5>a <hypernet:y:1> cat", "a cat"),
        ("a < b, c > d <3", "a < b, c > d <3"),
        ("a cat", "a cat"),
    ],
)
def test_calls_of_lora_files_are_left_out_of_prompts_and_captions(text: str, prompt: str):
    assert sampling_config_from({"prompts": [text], "negative": text}).prompts == (prompt,)
    assert sampling_config_from({"prompts": ["x"], "negative": text}).negative == prompt
    assert parse_prompt_line(f"{text} --s 4 --n {text}") == (prompt, {"steps": 4, "negative": prompt})
    assert draws(text, 1) == [prompt]
    assert bool(prompt_notes([text])) == (text != prompt)


def test_the_parameters_text_of_an_image_can_be_pasted_back(tmp_path: Path):
    config = SamplingConfig(prompts=(r"a cat \(small\)",), negative="blurry, dark", steps=4)
    image = GeneratedImage(prompt_index=0, strength=1.0, image=Image.new("RGB", (64, 64)))
    save_image(image, config, tmp_path / "p.png", base="tiny-sdxl", loras=[("ink", 1.0)])
    with Image.open(tmp_path / "p.png") as written:
        pasted = sampling_config_from({"prompts": [written.info["parameters"]]})
        notes = prompt_notes([written.info["parameters"]])
    assert (pasted.prompts, pasted.negative) == (config.prompts, config.negative)
    assert len(notes) == 2
    assert "<lora:ink:1>" in notes[0]


def test_captions_with_calls_and_weights_are_noted(tmp_path: Path):
    for name, caption in (("a", "a cat <lora:ink:1>"), ("b", "a (red:1.2) cat"), ("c", r"x \(y:2\)")):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    manifest = scan(tmp_path)
    assert manifest.problems == ()
    assert [note.rpartition(" ")[2] for note in manifest.notes] == ["a.png", "b.png"]
