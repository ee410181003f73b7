"""What is cached is found again by whoever would make the same, and by no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import INK, MODELS
from trainer.config import TrainConfig, config_from
from trainer.dataset.scan import scan
from trainer.runs import events, run
from trainer.runs.commands import CommandInbox
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
def mean_of(tmp_path: Path, art: Path):
    """The one picture's mean, as a training with this tile caches it."""
    base, manifest = open_base("tiny-sdxl", MODELS), scan(art)
    owner = run.Run(tmp_path / "owner")
    owner.path.mkdir()

    def of(tile: int, resolution: int = 256) -> torch.Tensor:
        cache = FeatureCache(tmp_path / ".cache", base.fingerprint, tile)
        config = TrainConfig(resolution=resolution)
        inbox = CommandInbox(owner, None)
        extractor = caching.FeatureExtractor(owner, config, base, cache, CPU, inbox)
        return extractor.latents(manifest.training_items).examples[0][0].mean

    return of


def test_latents_of_tiles_never_serve_a_training_that_takes_pictures_whole(mean_of):
    tiled, whole = mean_of(128), mean_of(0)
    assert 0.01 < float((tiled - whole).norm() / whole.norm()) < 0.2
    assert torch.equal(mean_of(128), tiled)
    assert torch.equal(mean_of(0), whole)


def test_latents_of_whole_pictures_serve_a_training_that_is_short_of_memory(mean_of, monkeypatch):
    whole, small = mean_of(0), mean_of(0, 128)
    monkeypatch.setattr(
        "trainer.training.caching.encode_image", lambda *_: pytest.fail("a picture was encoded again")
    )
    assert torch.equal(mean_of(128), whole)
    assert torch.equal(mean_of(128, 128), small)


def test_a_picture_no_larger_than_a_tile_is_the_same_in_either_way(mean_of, monkeypatch):
    small = mean_of(128, 128)
    monkeypatch.setattr(
        "trainer.training.caching.encode_image", lambda *_: pytest.fail("a picture was encoded again")
    )
    assert torch.equal(mean_of(0, 128), small)


def test_a_training_short_of_memory_encodes_in_tiles_and_so_does_its_continuation(
    tmp_path: Path, art: Path, monkeypatch
):
    """Though there is memory enough by then: its bytes are those of a run that was never interrupted."""
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

    def watched(vae, picture, tile):
        sides.append(tile)
        return encode(vae, picture, tile)

    monkeypatch.setattr("trainer.training.caching.encode_image", watched)
    monkeypatch.setattr("trainer.planning.plan.process_bytes", lambda device: 0)
    of = run.create(tmp_path / "run", config_from(settings), scan(art))
    assert train(of, MODELS) == "finished"
    assert sides == [128]
    whole = of.lora_file.read_bytes()

    shutil.rmtree(of.checkpoints / "step-2")
    of.lora_file.unlink()
    monkeypatch.setattr("trainer.planning.plan.process_bytes", lambda device: -(10**9))
    assert train(of, MODELS) == "finished"
    assert sides == [128]
    tiles = [event["tile"] for event in events.read(of.events)[0] if event["kind"] == "planned"]
    assert tiles == [128, 0]
    assert of.lora_file.stat().st_size == len(whole)
