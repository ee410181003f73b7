"""Previews of LoRA files: files on disk, strengths, the base kept in memory, and errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import MODELS, trainer
from tests.trainer.lora_file.lora_samples import drawn_by_the_base_alone
from trainer.errors import LoraFileError
from trainer.sampling.deepcache import DeepCache
from trainer.sampling.images import save_image
from trainer.sampling.pipeline import WarmBase
from trainer.sampling.sampler import scheduler_for
from trainer.sampling_config import SamplingConfig
from trainer.sdxl.base import open_base
from trainer.sdxl.text import Conditioning

PROMPTS = ("a cat", "a house")


@pytest.fixture(scope="module")
def previews(ink_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("previews")
    trainer(
        "preview",
        ink_run / "ink.safetensors",
        "--prompt",
        PROMPTS[0],
        "--prompt",
        PROMPTS[1],
        "--strengths",
        "0,0.25,1",
        "--seed",
        "7",
        "--steps",
        "4",
        "--out-dir",
        out,
    )
    return out


def test_a_preview_writes_one_image_for_each_prompt_and_strength_and_a_strip(previews: Path):
    expected = {f"p{p:02d}_s{s:.2f}.png" for p in (0, 1) for s in (0, 0.25, 1)} | {"strip.png"}
    assert {path.name for path in previews.iterdir()} == expected
    assert Image.open(previews / "p00_s0.00.png").size == (128, 128)


def test_images_contain_their_parameters_in_the_format_of_a1111(previews: Path):
    parameters = Image.open(previews / "p01_s0.25.png").info["parameters"]
    assert parameters.startswith(
        "a house <lora:ink:0.25>\nSteps: 4, Sampler: Euler, CFG scale: 5, Seed: 8, Size: 128x128"
    )


def test_any_number_of_prompts_is_sampled_in_passes_that_fit_the_memory(ink_run: Path, tmp_path: Path):
    prompts = [f"a cat number {number}" for number in range(18)]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = trainer(
        "preview",
        ink_run / "ink.safetensors",
        *arguments,
        "--strengths",
        "1",
        "--steps",
        "1",
        "--out-dir",
        tmp_path,
    )
    names = [*(f"p{number:02d}_s1.00.png" for number in range(18)), "strip-2.png", "strip.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [Path(line).name for line in result.stdout.splitlines()][-2:] == ["strip.png", "strip-2.png"]
    with Image.open(tmp_path / "strip.png") as first, Image.open(tmp_path / "strip-2.png") as second:
        assert first.height > 16 * 128 > second.height > 2 * 128
    alone = SamplingConfig(prompts=(prompts[17],), strengths=(1.0,), steps=1, seed=17)
    expected = WarmBase(open_base("tiny-sdxl", MODELS)).generate(ink_run / "ink.safetensors", alone)[0].image
    with Image.open(tmp_path / "p17_s1.00.png") as image:
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int))
        assert "Seed: 17" in image.info["parameters"]
    assert difference.max() <= 1  # another number of rows in a pass rounds differently


@pytest.mark.parametrize("sampler", ["euler", "lcm", "tcd", "euler_sgm_uniform"])
def test_guidance_1_computes_the_prompts_alone_and_ignores_the_negative_prompt(sampler: str):
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    rows: list[int] = []
    unet: Any = warm.unet
    hook = unet.conv_in.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    config = SamplingConfig(prompts=("a cat",), strengths=(0.0,), steps=2, sampler=sampler, guidance=1.0)
    first = warm.generate(None, config)[0].image
    assert rows == [1, 1]
    negative = dataclasses.replace(config, negative="a dog")
    assert warm.generate(None, negative)[0].image.tobytes() == first.tobytes()
    fast = dataclasses.replace(config, fast=True)
    warm.generate(None, fast)
    assert set(rows) == {1}
    hook.remove()
    nearly = dataclasses.replace(config, guidance=1.0001, negative="a dog")
    difference = np.asarray(warm.generate(None, nearly)[0].image).astype(int) - np.asarray(first)
    assert np.abs(difference).max() <= 2, "the image of guidance 1 is the limit of those near it"


def test_sgm_uniform_starts_at_the_last_timestep():
    scheduler = scheduler_for("euler_sgm_uniform", open_base("tiny-sdxl", MODELS).scheduler())
    scheduler.set_timesteps(4)
    assert [int(timestep) for timestep in scheduler.timesteps] == [999, 749, 499, 249]


def test_preview_advises_on_a_lora_of_few_steps(ink_run: Path, tmp_path: Path):
    file = tmp_path / "ink_lightning.safetensors"
    file.write_bytes((ink_run / "ink.safetensors").read_bytes())
    options = ("--prompt", "a", "--strengths", "1", "--out-dir", tmp_path / "out")
    usual = trainer("preview", file, *options, "--steps", "13")
    assert "ink_lightning looks like a Lightning model" in usual.stderr
    few = trainer("preview", file, *options, "--steps", "2", "--guidance", "1", "--sampler", "lcm")
    assert "looks like" not in few.stderr


def test_encoded_prompts_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr("trainer.sampling.sampler.MAX_CACHED", 2)
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    config = SamplingConfig(prompts=("a", "b", "c", "d"), strengths=(0.0,), steps=1, negative="bad")
    warm.generate(None, config)
    assert [set(texts) for texts in warm.cached.values()] == [{"c", "d"}]


def test_strength_zero_gives_the_image_of_the_base(ink_run: Path):
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    request = SamplingConfig(prompts=("a cat",), strengths=(0.0, 1.0), seed=7, steps=4)
    with_adapter = warm.generate(ink_run / "ink.safetensors", request)
    assert not warm.adapter_of([]).layers
    alone = drawn_by_the_base_alone(warm, request)
    assert np.array_equal(np.asarray(with_adapter[0].image), np.asarray(alone[0].image))
    assert not np.array_equal(np.asarray(with_adapter[1].image), np.asarray(alone[1].image))


def test_all_strengths_of_a_prompt_share_a_forward_pass(ink_run: Path, monkeypatch):
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    rows = []
    forward = warm.unet.forward
    monkeypatch.setattr(
        warm.unet, "forward", lambda sample, *a, **k: rows.append(len(sample)) or forward(sample, *a, **k)
    )
    warm.generate(
        ink_run / "ink.safetensors",
        SamplingConfig(prompts=("a cat",), strengths=(-1.0, 0.0, 0.5, 1.0, 2.0), steps=3),
    )
    assert rows == [10, 10, 10]


def test_the_base_is_restored_for_a_preview_without_a_lora(ink_run: Path, tmp_path: Path):
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    names = [name for name, _ in warm.unet.named_modules()]
    warm.generate(ink_run / "ink.safetensors", SamplingConfig(prompts=("a cat",), strengths=(1.0,), steps=1))
    assert [name for name, _ in warm.unet.named_modules()] != names  # stays attached for the next strength
    warm.generate(None, SamplingConfig(prompts=("a cat",), strengths=(1.0,), steps=1))
    assert [name for name, _ in warm.unet.named_modules()] == names
    # A file that fits no module leaves nothing attached either.
    save_file(
        {
            "lora_unet_nothing_of_the_kind.lora_down.weight": torch.zeros(1, 2),
            "lora_unet_nothing_of_the_kind.lora_up.weight": torch.zeros(2, 1),
        },
        tmp_path / "foreign.safetensors",
    )
    with pytest.raises(LoraFileError):
        warm.generate(
            tmp_path / "foreign.safetensors", SamplingConfig(prompts=("a cat",), strengths=(1.0,), steps=1)
        )
    assert [name for name, _ in warm.unet.named_modules()] == names


def scaled(file: Path, times: float, to: Path) -> Path:
    """Writes the LoRA with its change multiplied by `times` to `to`."""
    tensors = {name: tensor * (times if "lora_up" in name else 1) for name, tensor in load_file(file).items()}
    save_file(tensors, to)
    return to


def test_a_lora_of_the_same_shape_reuses_the_layers_of_the_last_one(ink_run: Path, tmp_path: Path):
    warm, fresh = (WarmBase(open_base("tiny-sdxl", MODELS)) for _ in range(2))
    request = SamplingConfig(prompts=("a cat",), strengths=(1.0,), steps=2)
    other = scaled(ink_run / "ink.safetensors", 3.0, tmp_path / "other.safetensors")
    first = warm.generate(ink_run / "ink.safetensors", request)
    layers = [layer for _, _, layer in warm.adapter_of([(ink_run / "ink.safetensors", 1.0)]).walk()]
    second = warm.generate(other, request)
    assert all(
        layer is previous
        for (_, _, layer), previous in zip(warm.adapter_of([(other, 1.0)]).walk(), layers, strict=True)
    )
    expected = fresh.generate(other, request)
    assert np.array_equal(np.asarray(second[0].image), np.asarray(expected[0].image))
    assert not np.array_equal(np.asarray(second[0].image), np.asarray(first[0].image))


def test_cached_deep_features_give_the_same_output_for_the_same_input():
    unet = open_base("tiny-sdxl", MODELS).unet(torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(1)
    width = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    pooled = torch.randn(1, width, generator=generator)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    conditioning = Conditioning(
        torch.randn(1, 77, unet.config["cross_attention_dim"], generator=generator), pooled
    )
    arguments = (latents, torch.tensor(500), conditioning, torch.full((1, 6), 128.0))
    with torch.inference_mode(), DeepCache(unet, 9) as fast, FlopCounterMode(display=False) as counted:
        whole = fast(*arguments)
        before = counted.get_total_flops()
        again = fast(*arguments)
        assert torch.equal(again, whole)
        assert counted.get_total_flops() < 1.7 * before


def test_a_fast_preview_is_similar_for_far_fewer_operations_and_names_itself_in_its_file(
    ink_run: Path, tmp_path: Path
):
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    request = SamplingConfig(prompts=("a cat",), strengths=(0.0, 1.0), steps=10)
    work, cells = [], []
    for config in (request, dataclasses.replace(request, fast=True)):
        with FlopCounterMode(warm.unet, display=False) as counted:
            cells.append(warm.generate(ink_run / "ink.safetensors", config))
        work.append(counted.get_total_flops())
    # A third for SDXL's shape, whose outermost level is a smaller part of the UNet.
    assert work[1] < 0.6 * work[0]
    other_seed = warm.generate(
        ink_run / "ink.safetensors", dataclasses.replace(request, seed=5, strengths=(1.0,))
    )
    true, fast, other = (
        np.asarray(cell.image).astype(float) for cell in (cells[0][1], cells[1][1], other_seed[0])
    )
    assert np.abs(true - fast).mean() < np.abs(true - other).mean()
    save_image(
        cells[1][0], dataclasses.replace(request, fast=True), tmp_path / "a.png", base="tiny-sdxl", loras=[]
    )
    assert "Fast preview: guidance on 40% of the steps" in Image.open(tmp_path / "a.png").info["parameters"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--strengths", "0,x"], "strengths"),
        (["--strengths", "3"], "-1 to 2"),
        (["--steps", "0"], "steps"),
        (["--guidance", "nan"], "guidance"),
        (["--base", "no-such-base"], "no-such-base"),
    ],
)
def test_a_wrong_option_is_reported_in_one_sentence(ink_run: Path, tmp_path: Path, arguments, word):
    done = trainer(
        "preview",
        ink_run / "ink.safetensors",
        "--prompt",
        "x",
        "--out-dir",
        tmp_path / "o",
        *arguments,
        check=False,
    )
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "no-such-folder", "--output", "x"],
        ["resume", "no-such-run"],
        ["lora", "inspect", "gone.safetensors"],
        ["dataset", "check", "gone"],
    ],
    ids=lambda a: a[0],
)
def test_a_missing_file_or_folder_is_reported_in_one_sentence(arguments, tmp_path: Path):
    done = trainer(*(a if a != "x" else tmp_path / "x" for a in arguments), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("impasto: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
