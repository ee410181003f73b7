"""Trainings in little memory: quantised bases, sampling in several passes, out-of-memory errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import INK, MODELS, SMALLEST, trainer
from trainer.adapter.lora import Adapter
from trainer.config import config_from
from trainer.config.presets import preset_values
from trainer.dataset.scan import scan
from trainer.errors import LoraFileError
from trainer.headers.safetensors import read_header
from trainer.runs import events, run
from trainer.sampling.sampler import Sampler, rows_per_pass
from trainer.sampling_config import SamplingConfig, SamplingLimits
from trainer.sdxl.base import open_base
from trainer.sdxl.latents import decode_images, decoding_tile, encode_image, to_pixels
from trainer.sdxl.text import Conditioning
from trainer.train import train
from trainer.training import checkpoint as state

CPU = torch.device("cpu")
QUICK = {
    "steps": 4,
    "batch": 2,
    "rank": 2,
    "checkpoint_every": 1,
    "keep_checkpoints": 4,
    "warmup_steps": 1,
    "resolution": 64,
    "precision": "fp32",
    "sample_prompts": ("a star --w 64 --h 64 --s 1",),
    "name": "lora",
    "network": "lora",
    "train_feed_forward": False,
    "thumbnail": "none",
}
STOPPED = {
    "quantised_base": "nf4",
    "train_text_encoder_1": True,
    "text_encoder_stop": 0.5,
    "optimizer": "schedulefree",
    "schedule": "constant",
    "include_layers": ("*mid_block*attn2.to_k", "text_encoder.*0.self_attn.*"),
}


def made(path: Path, **settings) -> run.Run:
    return run.create(path, config_from({**preset_values("style", 24), **QUICK, **settings}), scan(INK))


def events_of(of: run.Run, kind: str) -> list[dict]:
    return [event for event in events.read(of.events)[0] if event["kind"] == kind]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> run.Run:
    """A run over a base in 4 bits whose text encoder trains for half of the steps."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / ".cache").symlink_to(warm_cache)
    of = made(folder / "run", **STOPPED)
    assert train(of, MODELS) == "finished"
    return of


def test_run_and_file_name_the_precision_of_a_quantised_base(stopped: run.Run):
    (planned,) = events_of(stopped, "planned")
    assert planned["quantised"] == "nf4"
    assert "the base model in nf4" in planned["words"]
    facts = read_header(stopped.lora_file, LoraFileError).metadata
    assert facts["ss_quantised_base"] == "nf4"
    assert facts["ss_fp8_base_unet"] == "False"
    assert events_of(stopped, "checked")[0]["difference"] < 1
    assert (stopped.samples / "strip.png").is_file()


def test_a_text_encoder_that_has_stopped_does_not_change(stopped: run.Run):
    two, three, four = (
        load_file(stopped.checkpoints / f"step-{step}" / "adapter.safetensors") for step in (2, 3, 4)
    )
    text = [name for name in two if name.startswith("text_encoder/")]
    assert text
    assert any(bool(two[name].any()) for name in text if name.endswith(".up"))
    assert all(torch.equal(two[name], four[name]) for name in text)
    assert all(not torch.equal(three[name], four[name]) for name in two if name.startswith("unet/"))


def test_a_run_resumed_after_its_text_encoder_has_stopped_ends_with_the_same_bytes(
    stopped: run.Run, tmp_path: Path
):
    again = run.create(tmp_path / "run", stopped.config, stopped.manifest)
    (tmp_path / ".cache").symlink_to(stopped.path.parent / ".cache")
    shutil.copytree(stopped.checkpoints / "step-3", again.checkpoints / "step-3")
    assert train(again, MODELS) == "finished"
    one, two = (load_file(state.checkpoints(of)[0] / "adapter.safetensors") for of in (stopped, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def parts() -> dict:
    base = open_base("tiny-sdxl", MODELS)
    adapter = Adapter()
    return {
        "base": base,
        "unet": base.unet(CPU, torch.float32),
        "vae": base.vae(CPU),
        "scheduler": base.scheduler(),
        "adapter": adapter,
    }


def test_a_strip_in_several_passes_has_the_same_images(parts: dict):
    draws = torch.Generator().manual_seed(0)
    texts = {
        text: Conditioning(torch.randn(1, 77, 144, generator=draws), torch.randn(1, 80, generator=draws))
        for text in ("a cat", "")
    }
    config = SamplingConfig(prompts=("a cat",), strengths=(0.0, 0.5, 1.0), steps=2)
    passes: list[int] = []

    def generated(limits: SamplingLimits) -> list:
        hook = parts["unet"].register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
        sampler = Sampler(**parts, limits=limits)
        cells = sampler.generate(config, sampler.prompt_encoder(texts, texts.__getitem__))
        hook.remove()
        return [np.asarray(cell.image, dtype=float) for cell in cells]

    whole, divided = generated(SamplingLimits()), generated(SamplingLimits(pixels=2 * 128 * 128))
    assert passes == [6, 6, 4, 4, 2, 2]  # with and without the prompt
    assert max(np.abs(one - other).max() for one, other in zip(whole, divided, strict=True)) <= 1


def test_a_pass_contains_whole_strips_if_one_fits():
    rows = {
        room: rows_per_pass(4, 5, (128, 128), SamplingLimits(pixels=room * 128 * 128))
        for room in (0, 20, 19, 9, 4, 1)
    }
    assert rows == {0: 20, 20: 20, 19: 15, 9: 5, 4: 4, 1: 1}
    assert rows_per_pass(4, 5, (1024, 1024)) == 5
    assert rows_per_pass(1, 1, (2048, 2048), SamplingLimits(pixels=1)) == 1


def test_an_image_decoded_in_tiles_is_nearly_the_same(parts: dict):
    vae = parts["vae"]
    latents = (
        encode_image(vae, to_pixels(Image.open(INK / "owl.png").convert("RGB").resize((256, 256))))[0]
        * vae.config["scaling_factor"]
    )
    whole, tiled, again = (
        np.asarray(decode_images(vae, latents, tile)[0], float) for tile in (0, decoding_tile(vae), 0)
    )
    assert whole.shape == (256, 256, 3)
    assert np.array_equal(whole, again)
    assert 0 < np.abs(whole - tiled).mean() < 8


def lacking(call: int, error: Exception):
    """Returns a decorator that raises at a numbered call; calls on the meta device don't count."""
    calls = []

    def around(function):
        def called(*args, **kwargs):
            is_real = not any(isinstance(given, torch.Tensor) and given.is_meta for given in args)
            calls.append(None) if is_real else None
            if is_real and len(calls) == call:
                raise error
            return function(*args, **kwargs)

        return called

    return around


ON_A_CARD = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_A_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 9 bytes."
)


@pytest.mark.parametrize(
    ("place", "call", "error"),
    [
        ((AutoencoderKL, "encode"), 2, ON_A_CARD),
        ((UNet2DConditionModel, "forward"), 1, ON_A_CPU),
        ((torch.optim.AdamW, "step"), 2, MemoryError()),
    ],
    ids=["caching", "first step", "second step"],
)
def test_out_of_memory_is_reported_in_one_sentence_and_keeps_caches_and_checkpoints(
    place, call, error, tmp_path: Path, monkeypatch
):
    art = tmp_path / "art"
    art.mkdir()
    for name in ("owl.png", "owl.txt", "star.png", "star.txt"):
        shutil.copy(INK / name, art)
    monkeypatch.setattr(*place, lacking(call, error)(getattr(*place)))
    arguments = [
        "--rank",
        "2",
        "--steps",
        "2",
        *SMALLEST,
        "--set",
        "network=lora",
        "--set",
        "checkpoint_every=1",
    ]
    done = trainer("train", art, "--output", tmp_path / "run", *arguments, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "not enough memory; the caches and every checkpoint are kept" in done.stderr
    assert "smaller batch" in done.stderr
    of = run.Run(tmp_path / "run")
    assert events_of(of, "ended")[-1]["cause"] == "memory"
    assert [path for path in (tmp_path / ".cache").rglob("*") if path.is_file() and "plans" not in path.parts]
    assert bool(state.checkpoints(of)) == (place[1] == "step")


@pytest.mark.usefixtures("shared_cache")
def test_out_of_memory_while_sampling_does_not_end_the_training(tmp_path: Path, monkeypatch):
    of = made(tmp_path / "run", steps=1, sample_at_start=True)
    monkeypatch.setattr(AutoencoderKL, "decode", lacking(1, ON_A_CARD)(AutoencoderKL.decode))
    assert train(of, MODELS) == "finished"
    assert of.lora_file.is_file()
    assert (of.samples / "strip.png").is_file()
    assert any(
        "not enough memory for the sample images at step 0" in event["message"]
        for event in events_of(of, "problem")
    )
