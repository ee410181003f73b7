"""A preview uses the prediction type of the file's training, which may differ from that of the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter
from trainer.config import TrainConfig
from trainer.lora_file.writer import save_lora
from trainer.planning.memory import attach_to_meta
from trainer.sampling.pipeline import WarmBase
from trainer.sampling.sampler import Sampler
from trainer.sampling_config import SamplingConfig
from trainer.sdxl.base import open_base
from trainer.sdxl.schedulers import scheduler_of_lora_files, training_scheduler

BASE = open_base("tiny-sdxl", MODELS)
OTHER = "v_prediction" if BASE.prediction_type == "epsilon" else "epsilon"
SPEC = {"v_prediction": "v", "epsilon": "epsilon"}
NAMED = {"ss_sd_model_name": "tiny-sdxl"}


@pytest.mark.parametrize(
    ("metadata", "prediction"),
    [
        ([], BASE.prediction_type),
        ([{}], BASE.prediction_type),
        ([{"modelspec.prediction_type": SPEC[OTHER]}], OTHER),
        ([{**NAMED, "modelspec.prediction_type": SPEC[OTHER]}], OTHER),
        (
            [
                {
                    "ss_sd_model_name": "tiny-sdxl.safetensors",
                    "ss_v_parameterization": str(OTHER == "v_prediction"),
                }
            ],
            OTHER,
        ),
        (
            [{"ss_sd_model_name": "another-base", "modelspec.prediction_type": SPEC[OTHER]}],
            BASE.prediction_type,
        ),
        (
            [{"modelspec.prediction_type": "epsilon"}, {"modelspec.prediction_type": "v"}],
            BASE.prediction_type,
        ),
        ([{"modelspec.prediction_type": "nonsense"}], BASE.prediction_type),
    ],
)
def test_only_files_trained_on_this_base_change_the_prediction_type(metadata, prediction):
    assert scheduler_of_lora_files(metadata, BASE).config["prediction_type"] == prediction


def test_a_preview_uses_the_terminal_snr_of_the_training():
    config = TrainConfig(prediction_type="v_prediction", zero_terminal_snr="on")
    trained = training_scheduler(config, BASE)
    shown = scheduler_of_lora_files(
        [{**NAMED, "modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}], BASE
    )
    assert shown.config == trained.config
    assert torch.equal(shown.alphas_cumprod, trained.alphas_cumprod)


def test_a_preview_equals_the_image_of_the_training_itself(tmp_path: Path):
    warm = WarmBase(BASE)
    adapter = attach_to_meta(TrainConfig(rank=2), {"unet": warm.unet})
    adapter.init_weights(0)
    save_lora(tmp_path / "x.safetensors", adapter, {**NAMED, "modelspec.prediction_type": SPEC[OTHER]})
    adapter.detach("unet", warm.unet)
    request = SamplingConfig(prompts=("a cat",), strengths=(1.0,), steps=2)
    (shown,) = warm.generate(tmp_path / "x.safetensors", request)
    texts = next(iter(warm.cached.values()))

    def generated(prediction_type: str) -> Image.Image:
        scheduler = training_scheduler(TrainConfig(prediction_type=prediction_type), BASE)
        sampler = Sampler(base=BASE, unet=warm.unet, vae=warm.vae, scheduler=scheduler, adapter=Adapter())
        return sampler.generate(request, sampler.prompt_encoder(texts, texts.__getitem__))[0].image

    expected, other = generated(OTHER), generated(BASE.prediction_type)
    # The adapter's B is zero, so the image is that of the base.
    assert np.abs(np.asarray(shown.image, float) - np.asarray(expected, float)).max() <= 1
    assert np.abs(np.asarray(shown.image, float) - np.asarray(other, float)).mean() > 1
