"""Encoding of prompts: as SDXL's pipeline, in windows beyond 77 tokens, with optional emphasis."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MODELS
from trainer.errors import ConfigError
from trainer.sdxl.base import open_base
from trainer.sdxl.emphasis import parse_emphasis
from trainer.sdxl.text import PromptEncoding, count_windows, encode, token_windows, truncated_tokens

CPU = torch.device("cpu")
LONG = ", ".join(["a red apple on a wooden table in the rain"] * 20)


@pytest.fixture(scope="module")
def parts():
    base = open_base("tiny-sdxl", MODELS)
    return base.tokenizers(), base.text_encoders(CPU, torch.float32)


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusionXLPipeline.from_pretrained(
        MODELS / "tiny-sdxl", local_files_only=True, torch_dtype=torch.float32
    )


@pytest.mark.parametrize("prompt", ["", "a red apple", "un café très noir 🍎 (x:2)", LONG])
@pytest.mark.parametrize("skip", [2, 3])
@torch.inference_mode()
def test_the_encoding_of_a_prompt_equals_that_of_the_sdxl_pipeline(parts, pipeline, prompt, skip):
    ours = encode([prompt], *parts, encoding=PromptEncoding(clip_skip=skip))
    theirs = pipeline.encode_prompt(
        prompt, do_classifier_free_guidance=False, clip_skip=None if skip == 2 else skip - 2
    )
    assert torch.allclose(ours.text_NTD, theirs[0], atol=1e-5)
    assert torch.allclose(ours.pooled_NP, theirs[2], atol=1e-5)


@torch.inference_mode()
def test_a_long_prompt_is_encoded_to_its_end_in_windows(parts):
    tokenizers, _ = parts
    assert truncated_tokens(LONG, tokenizers[0])[0] > 0
    assert count_windows(LONG, tokenizers[0]) == 3
    long = encode([LONG], *parts, encoding=PromptEncoding(windows=3))
    assert long.text_NTD.shape[1] == 3 * 77
    assert truncated_tokens(LONG, tokenizers[0], PromptEncoding(windows=3)) == (0, "")
    other_end = encode([LONG.removesuffix("rain") + "snow"], *parts, encoding=PromptEncoding(windows=3))
    assert torch.equal(long.text_NTD[:, :154], other_end.text_NTD[:, :154])
    assert not torch.equal(long.text_NTD, other_end.text_NTD)
    assert torch.equal(long.pooled_NP, other_end.pooled_NP)  # that of the first window
    # The first window equals the encoding with one window.
    assert torch.allclose(long.text_NTD[:, :77], encode([LONG], *parts).text_NTD, atol=1e-5)


@torch.inference_mode()
def test_a_weight_moves_only_its_words_away_from_the_empty_prompt(parts):
    plain, empty = encode(["a red apple"], *parts).text_NTD, encode([""], *parts).text_NTD
    heavy = encode(["a (red:1.5) apple"], *parts, encoding=PromptEncoding(weighted=True)).text_NTD
    moved = (heavy - plain).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [2]  # start token, a, red
    assert torch.allclose(heavy[:, 2], empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2]), atol=1e-5)
    assert torch.allclose(
        encode(["a (red:1.0) apple"], *parts, encoding=PromptEncoding(weighted=True)).text_NTD,
        plain,
        atol=1e-5,
    )


@torch.inference_mode()
def test_brackets_are_plain_text_without_weights(parts):
    tokenizers, _ = parts
    assert (
        tokenizers[0].decode(
            token_windows("rem (re:zero)", tokenizers[0], PromptEncoding())[0][0], skip_special_tokens=True
        )
        == "rem ( re : zero )"
    )


def test_a_clip_skip_deeper_than_the_encoder_is_rejected(parts):
    with pytest.raises(
        ConfigError, match="clip_skip 9 is deeper than this base's text encoder; take at most 3"
    ):
        encode(["a"], *parts, encoding=PromptEncoding(clip_skip=9))


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("a ((cat))", [("a ", 1.0), ("cat", 1.1 * 1.1)]),
        ("a (cat:1.3) b", [("a ", 1.0), ("cat", 1.3), (" b", 1.0)]),
        ("(a [b:c])", [("a ", 1.1), ("b:c", 1.1 * (1 / 1.1))]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1.0)]),
        (r"rem \(re:zero\)", [("rem (re:zero)", 1.0)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("closed)", [("closed)", 1.0)]),
        ("(x:-1)", [("x", -1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_emphasis_has_the_notation_of_a1111(prompt, pieces):
    found = parse_emphasis(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(st.text(alphabet="ab ()[]:\\.123-,", max_size=40))
def test_every_text_is_parsed_without_an_error(prompt):
    found = parse_emphasis(prompt)
    assert all(isinstance(weight, float) for _, weight in found)
    assert {c for text, _ in found for c in text} <= set(prompt)
