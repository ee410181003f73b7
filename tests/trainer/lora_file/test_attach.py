"""Several LoRAs on one base: the sum of their changes for all networks, and the exact base at strength 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MODELS
from tests.trainer.lora_file.lora_samples import (
    CONVOLUTION,
    METADATA,
    Place,
    drawn_by_the_base_alone,
    write_lora,
)
from trainer.errors import ConfigError, LoraFileError
from trainer.lora_file.attach import attach_mix
from trainer.lora_file.module_names import kohya_name
from trainer.sampling.pipeline import WarmBase
from trainer.sampling_config import SamplingConfig, parse_weighted_file
from trainer.sdxl.base import open_base


@pytest.fixture(scope="module")
def warm() -> WarmBase:
    return WarmBase(open_base("tiny-sdxl", MODELS), "fp32")


def chosen(places, *marks: str) -> dict[Place, tuple[int, ...]]:
    return {
        place: shape
        for place, shape in places.items()
        if place[0] == "unet" and any(mark in place[1] for mark in marks)
    }


def changes(adapter) -> dict[Place, torch.Tensor]:
    return {(part, path): layer.change().detach().flatten(1) for part, path, layer in adapter.walk()}


def detached(warm: WarmBase, files) -> dict[Place, torch.Tensor]:
    warm.adapter_of([])
    adapter = attach_mix(files, {"unet": warm.unet})
    try:
        return changes(adapter)
    finally:
        adapter.detach("unet", warm.unet)


def test_a_mix_of_loras_changes_each_layer_by_the_weighted_sum(warm: WarmBase, places, tmp_path: Path):
    a = write_lora(tmp_path / "a.safetensors", chosen(places, ".attn1.to_q", CONVOLUTION), seed=1)
    b = write_lora(
        tmp_path / "b.safetensors",
        chosen(places, ".attn1.to_q", ".attn2.to_v"),
        seed=2,
        rank=lambda n: 5,
        alpha=lambda n: 1.0,
    )
    actual = detached(warm, [(tmp_path / "a.safetensors", 0.7), (tmp_path / "b.safetensors", -0.4)])
    assert set(actual) == set(a) | set(b)  # the union of their layers
    for place, change in actual.items():
        expected = 0.7 * a.get(place, torch.zeros_like(change)) - 0.4 * b.get(place, torch.zeros_like(change))
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)


def test_a_mixed_image_equals_that_of_a_base_with_both_in_its_weights(warm: WarmBase, places, tmp_path: Path):
    files = [(tmp_path / "a.safetensors", 0.6), (tmp_path / "b.safetensors", 0.5)]
    parts = [
        write_lora(file, chosen(places, ".attn1.", ".attn2."), seed=seed)
        for seed, (file, _) in enumerate(files)
    ]
    request = SamplingConfig(prompts=("a cat",), strengths=(1.0,), seed=3, steps=3)
    mixed = warm.generate(files, request)[0].image
    warm.adapter_of([])
    by_hand = {place[1]: 0.6 * parts[0][place] + 0.5 * parts[1][place] for place in parts[0]}
    originals = {path: warm.unet.get_submodule(path).weight.detach().clone() for path in by_hand}
    with torch.no_grad():
        for path, change in by_hand.items():
            warm.unet.get_submodule(path).weight += change.reshape(originals[path].shape)
        try:
            merged = warm.generate(None, request)[0].image
        finally:
            for path, weight in originals.items():
                warm.unet.get_submodule(path).weight.copy_(weight)
    plain = warm.generate(None, request)[0].image
    apart = [np.abs(np.asarray(mixed, float) - np.asarray(other, float)).mean() for other in (merged, plain)]
    assert apart[0] < 0.5 < 5 * apart[0] + 1 < apart[1]


def test_a_mix_at_strength_zero_is_the_base_to_the_bit(warm: WarmBase, places, tmp_path: Path):
    files = [(tmp_path / f"{seed}.safetensors", 0.0 if seed else 1.0) for seed in (0, 1)]
    for seed, (file, _) in enumerate(files):
        write_lora(file, chosen(places, ".attn1."), seed=seed)
    request = SamplingConfig(prompts=("a cat",), strengths=(0.0, 1.0), steps=2)
    mixed = warm.generate(files, request)
    assert not warm.adapter_of([]).layers
    alone = drawn_by_the_base_alone(warm, request)
    assert np.array_equal(np.asarray(mixed[0].image), np.asarray(alone[0].image))
    assert not np.array_equal(np.asarray(mixed[1].image), np.asarray(alone[1].image))


def test_other_networks_add_their_whole_change(warm: WarmBase, places, tmp_path: Path):
    some = chosen(places, ".attn1.to_k")
    lora = write_lora(tmp_path / "lora.safetensors", some, seed=1)
    write_lora(tmp_path / "dora.safetensors", some, seed=2)
    tensors = load_file(tmp_path / "dora.safetensors")
    for (part, path), shape in some.items():
        tensors[f"{kohya_name(part, path)}.dora_scale"] = torch.rand(1, shape[1]) + 0.5
    save_file(tensors, tmp_path / "dora.safetensors", metadata=METADATA)
    dora = detached(warm, [(tmp_path / "dora.safetensors", 1.0)])
    both = detached(warm, [(tmp_path / "lora.safetensors", 0.5), (tmp_path / "dora.safetensors", 0.25)])
    for place, change in both.items():
        torch.testing.assert_close(change, 0.5 * lora[place] + 0.25 * dora[place], rtol=1e-4, atol=1e-5)


def test_a_mix_leaves_nothing_attached_when_one_file_does_not_fit(warm: WarmBase, places, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", chosen(places, ".attn1.to_q"))
    write_lora(
        tmp_path / "b.safetensors",
        {("unet", "mid_block.attentions.0.transformer_blocks.9.attn1.to_q"): (1280, 1280)},
    )
    warm.adapter_of([])
    names = [name for name, _ in warm.unet.named_modules()]
    with pytest.raises(LoraFileError, match=r"b\.safetensors holds 1 modules that this base lacks"):
        detached(warm, [(tmp_path / "a.safetensors", 1.0), (tmp_path / "b.safetensors", 1.0)])
    assert [name for name, _ in warm.unet.named_modules()] == names


def test_a_weight_follows_the_last_equals_sign():
    assert parse_weighted_file("a=b.safetensors=0.5") == (Path("a=b.safetensors"), 0.5)
    assert parse_weighted_file("a=b.safetensors") == (Path("a=b.safetensors"), 1.0)
    with pytest.raises(ConfigError, match="from -2 to 2"):
        parse_weighted_file("a.safetensors=7")
