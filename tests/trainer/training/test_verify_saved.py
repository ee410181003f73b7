"""What a training has saved is checked: by other tools' rules, and by a picture drawn from the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs
from trainer.config import config_from
from trainer.dataset.manifest import Manifest
from trainer.lora_file.writer import save_lora
from trainer.runs import events, run
from trainer.sampling.sampler import SamplingConfig
from trainer.sdxl.base import open_base
from trainer.training.samples import TrainingSamples
from trainer.training.text_conditioning import TextConditioner
from trainer.training.verify_saved import MOST, verify_saved

CPU = torch.device("cpu")


def said(made: run.Run, kind: str) -> list[dict]:
    return [event for event in events.read(made.events)[0] if event["kind"] == kind]


def test_every_training_says_which_tools_take_its_file(ink_run: Path):
    (checked,) = said(run.Run(ink_run), "checked")
    assert {tool.split()[0] for tool in checked["takes"]} == {
        "A1111",
        "Forge",
        "ComfyUI",
        "InvokeAI",
        "sd-scripts",
        "diffusers",
    }
    assert checked["difference"] < 1


@pytest.fixture
def saved(tmp_path: Path):
    """A run with a file, and the models that trained it."""
    config = config_from({"name": "x", "rank": 4, "sample_prompts": ("a cat",)})
    made = run.create(tmp_path / "run", config, Manifest(folder="", items=()))
    base = open_base("tiny-sdxl", MODELS)
    unet, adapter = base.unet(CPU, torch.float32), Adapter()
    adapter.attach("unet", unet, layer_specs(config, {"unet": unet})["unet"])
    adapter.init_weights(0)
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters()):
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.1
            )
    save_lora(made.lora_file, adapter, {"ss_base_model_version": "sdxl_base_v1-0"})
    texts = TextConditioner({}, base.text_encoders(CPU, torch.float32), base.tokenizers())
    sampler = TrainingSamples(
        made, config, base, [(0, SamplingConfig(prompts=("a cat",), steps=4))], unet, adapter, texts
    )
    return made, sampler, adapter, {"unet": unet}


def test_a_good_file_draws_what_memory_draws_and_the_models_are_as_before(saved):
    made, sampler, adapter, models = saved
    layers = {path: models["unet"].get_submodule(path) for path in adapter.layers["unet"]}
    assert verify_saved(made, sampler, models)["difference"] < MOST / 4
    assert all(models["unet"].get_submodule(path) is layer for path, layer in layers.items())
    assert not said(made, "problem")


def test_a_file_of_other_values_is_told(saved):
    made, sampler, adapter, models = saved
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(-1.5)
            parameter.add_(0.05)
    assert verify_saved(made, sampler, models)["difference"] > MOST
    assert "draws another picture than the training did" in said(made, "problem")[-1]["message"]
