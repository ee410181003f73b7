"""The cache of latents: a training finds exactly the latents that it would compute itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import INK, MODELS
from trainer.config import TrainConfig, config_from
from trainer.dataset.scan import scan
from trainer.runs import events, run
from trainer.runs.commands import CommandInbox
from trainer.runs.inputs import Inputs
from trainer.sdxl.base import open_base
from trainer.train import train
from trainer.training import caching
from trainer.training.feature_cache import FeatureCache

CPU = torch.device("cpu")


@pytest.fixture
def art(tmp_path: Path) -> Path:
    folder = tmp_path / "art"
    folder.mkdir()
    for name in ("owl.png", "owl.txt"):
        shutil.copy(INK / name, folder)
    return folder


@pytest.fixture
def mean_latents(tmp_path: Path, art: Path):
    """Returns a function from tile and resolution to the mean of the one image's latents."""
    base, manifest = open_base("tiny-sdxl", MODELS), scan(art)
    owner = run.Run(tmp_path / "owner")
    owner.path.mkdir()

    def mean(tile: int, resolution: int = 256) -> torch.Tensor:
        cache = FeatureCache(tmp_path / ".cache", base.fingerprint, tile)
        config = TrainConfig(resolution=resolution)
        inbox = CommandInbox(owner, None)
        extractor = caching.FeatureExtractor(owner, config, base, cache, CPU, inbox, Inputs({}))
        return extractor.latents(manifest.training_items).examples[0][0].mean

    return mean


def test_latents_of_tiles_are_not_used_by_a_training_that_encodes_whole_images(mean_latents):
    tiled, whole = mean_latents(128), mean_latents(0)
    assert 0.01 < float((tiled - whole).norm() / whole.norm()) < 0.2
    assert torch.equal(mean_latents(128), tiled)
    assert torch.equal(mean_latents(0), whole)


def test_latents_of_whole_images_are_used_by_a_training_that_encodes_in_tiles(mean_latents, monkeypatch):
    whole, small = mean_latents(0), mean_latents(0, 128)
    monkeypatch.setattr(
        "trainer.training.caching.encode_image", lambda *_: pytest.fail("an image was encoded again")
    )
    assert torch.equal(mean_latents(128), whole)
    assert torch.equal(mean_latents(128, 128), small)


def test_an_image_no_larger_than_a_tile_has_the_same_latents_with_and_without_tiles(
    mean_latents, monkeypatch
):
    small = mean_latents(128, 128)
    monkeypatch.setattr(
        "trainer.training.caching.encode_image", lambda *_: pytest.fail("an image was encoded again")
    )
    assert torch.equal(mean_latents(0, 128), small)


def test_a_training_with_little_memory_encodes_in_tiles_and_so_does_its_continuation(
    tmp_path: Path, art: Path, monkeypatch
):
    """More memory is free when the run continues; its weights must still equal those of an unbroken run."""
    settings = {
        "steps": 2,
        "rank": 2,
        "batch": 1,
        "resolution": 512,
        "precision": "fp32",
        "network": "lora",
        "checkpoint_every": 1,
        "name": "lora",
        "sample_prompts": ("a star --w 64 --h 64 --s 1",),
        "memory_budget": 0.135,
        "thumbnail": "none",
    }
    sides: list[int] = []
    encode = caching.encode_image

    def recording(vae, image, tile):
        sides.append(tile)
        return encode(vae, image, tile)

    monkeypatch.setattr("trainer.training.caching.encode_image", recording)
    monkeypatch.setattr("trainer.planning.plan.process_bytes", lambda device: 0)
    small_run = run.create(tmp_path / "run", config_from(settings), scan(art))
    assert train(small_run, MODELS) == "finished"
    assert sides == [128]
    unbroken = load_file(small_run.lora_file)

    shutil.rmtree(small_run.checkpoints / "step-2")
    small_run.lora_file.unlink()
    monkeypatch.setattr("trainer.planning.plan.process_bytes", lambda device: -(10**9))
    assert train(small_run, MODELS) == "finished"
    assert sides == [128]
    tiles = [event["tile"] for event in events.read(small_run.events)[0] if event["kind"] == "planned"]
    assert tiles == [128, 0]
    continued = load_file(small_run.lora_file)
    assert continued.keys() == unbroken.keys()
    assert all(torch.equal(continued[name], tensor) for name, tensor in unbroken.items())
