"""The check of a saved file by the rules of other tools, and by an image that is generated with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs
from trainer.config import config_from
from trainer.dataset.caption_rules import CaptionRules
from trainer.dataset.manifest import Manifest
from trainer.lora_file.writer import save_lora
from trainer.runs import events, run
from trainer.sampling_config import SamplingConfig
from trainer.sdxl.base import open_base
from trainer.training.examples import LatentDataset
from trainer.training.objective import objective_of
from trainer.training.samples import TrainingSamples
from trainer.training.setup import Setup
from trainer.training.text_conditioning import TextConditioner, TextModels
from trainer.training.verify_saved import MAX_DIFFERENCE, verify_saved

CPU = torch.device("cpu")


def events_of(new_run: run.Run, kind: str) -> list[dict]:
    return [event for event in events.read(new_run.events)[0] if event["kind"] == kind]


def test_every_training_reports_which_tools_load_its_file(ink_run: Path):
    (checked,) = events_of(run.Run(ink_run), "checked")
    assert {tool.split()[0] for tool in checked["takes"]} == {
        "A1111",
        "Forge",
        "ComfyUI",
        "InvokeAI",
        "sd-scripts",
        "diffusers",
    }
    assert checked["difference"] < 1


class Saved(NamedTuple):
    """A run with a file, and the models that trained it."""

    run: run.Run
    samples: TrainingSamples
    adapter: Adapter
    models: dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    config = config_from({"name": "x", "rank": 4, "sample_prompts": ("a cat",)})
    new_run = run.create(tmp_path / "run", config, Manifest(folder="", items=()))
    base = open_base("tiny-sdxl", MODELS)
    unet, adapter = base.unet(CPU, torch.float32), Adapter()
    adapter.attach("unet", unet, layer_specs(config, {"unet": unet})["unet"])
    adapter.init_weights(0)
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_lora(new_run.lora_file, adapter, {"ss_base_model_version": "sdxl_base_v1-0"})
    dataset = LatentDataset((), (), base.latent_scaling)
    conditioner = TextConditioner({}, TextModels(base, CPU))
    setup = Setup(
        config,
        base,
        objective_of(config, base),
        dataset,
        dataset.batches(1, 0),
        CaptionRules(config),
        conditioner,
        unet,
        adapter,
        torch.float32,
    )
    samples = TrainingSamples(new_run, setup, [(0, SamplingConfig(prompts=("a cat",), steps=4))], conditioner)
    return Saved(new_run, samples, adapter, {"unet": unet})


def test_a_good_file_gives_the_same_image_and_leaves_the_models_as_they_were(saved: Saved):
    unet = saved.models["unet"]
    layers = {path: unet.get_submodule(path) for path in saved.adapter.layers["unet"]}
    assert verify_saved(saved.run, saved.samples, saved.models)["difference"] < MAX_DIFFERENCE / 4
    assert all(unet.get_submodule(path) is layer for path, layer in layers.items())
    assert not events_of(saved.run, "problem")


def test_a_file_with_other_values_is_reported(saved: Saved):
    with torch.no_grad():
        for parameter in saved.adapter.parameters():
            parameter.mul_(-1.5)
            parameter.add_(0.05)
    assert verify_saved(saved.run, saved.samples, saved.models)["difference"] > MAX_DIFFERENCE
    message = events_of(saved.run, "problem")[-1]["message"]
    assert "gives another image than the training" in message
