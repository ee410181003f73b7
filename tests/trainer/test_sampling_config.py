"""Sampling parameters: validation, samplers with every prediction type, file names and PNG metadata."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import MODELS
from trainer.errors import ConfigError
from trainer.sampling.images import GeneratedImage, save_image
from trainer.sampling.pipeline import WarmBase
from trainer.sampling.sampler import scheduler_for
from trainer.sampling_config import SAMPLERS, SamplingConfig, picture_name, sampling_config_from
from trainer.sdxl.base import open_base

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5000),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=3), st.floats(-3, 3)), max_size=3),
)


@given(values=st.dictionaries(st.sampled_from([*SamplingConfig.__dataclass_fields__, "command"]), ANYTHING))
def test_any_values_give_a_config_within_its_bounds_or_a_config_error(values: dict[str, Any]):
    try:
        config = sampling_config_from(values)
    except ConfigError:
        return
    assert config.prompts
    assert all(-1 <= strength <= 2 for strength in config.strengths)
    assert 1 <= config.steps <= 200
    assert math.isfinite(config.guidance)
    assert config.sampler in SAMPLERS
    assert all(side == 0 or 64 <= side <= 4096 for side in (config.width, config.height))


def test_whole_numbers_are_accepted_as_strengths_and_guidance():
    config = sampling_config_from({"prompts": ["a cat"], "strengths": [0, 1], "guidance": 7})
    assert config.strengths == (0.0, 1.0)
    assert config.guidance == 7.0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_converges_to_the_image_that_the_model_predicts(sampler: str, prediction_type: str):
    """A perfect model replaces the UNet: it computes its output from x_0 (Salimans & Ho 2022, appendix D)."""
    euler = EulerDiscreteScheduler(
        prediction_type=prediction_type,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
    )
    scheduler = scheduler_for(sampler, euler)
    assert scheduler.config.prediction_type == prediction_type
    assert scheduler.config.beta_schedule == "scaled_linear"
    scheduler.set_timesteps(20)
    clean = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(clean.shape, generator=generator) * scheduler.init_noise_sigma
    step_options = {"generator": [generator]} if SAMPLERS[sampler].draws_noise else {}
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(sample, timestep)
        alpha_bar = euler.alphas_cumprod[int(timestep)]
        epsilon = (model_input - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        velocity = alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * clean
        output = epsilon if prediction_type == "epsilon" else velocity
        sample = scheduler.step(output, timestep, sample, **step_options).prev_sample
    assert float((sample - clean).abs().max()) < 0.1


def test_all_strengths_of_a_prompt_get_the_same_noise_in_every_step():
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    # Without a LoRA, the strength has no effect: the rows differ only if their noise does.
    ancestral = SamplingConfig(prompts=("a cat",), strengths=(0.0, 1.0), sampler="euler_a", steps=2)
    first, second = (cell.image.tobytes() for cell in warm.generate(None, ancestral))
    assert first == second
    plain = SamplingConfig(prompts=("a cat",), strengths=(0.0, 1.0), steps=2)
    assert first != warm.generate(None, plain)[0].image.tobytes()


def test_a_png_names_its_sampler_and_every_lora_in_the_format_of_a1111(tmp_path: Path):
    config = SamplingConfig(
        prompts=("a cat",), negative="blurry", sampler="dpmpp_2m_karras", steps=7, guidance=4.5, seed=3
    )
    cell = GeneratedImage(prompt_index=0, strength=0.5, image=Image.new("RGB", (64, 64)))
    loras = [("ink", 1.0), ("wash", 0.5), ("none", 0.0)]
    save_image(cell, config, tmp_path / "a.png", base="tiny", loras=loras)
    assert Image.open(tmp_path / "a.png").info["parameters"] == (
        "a cat <lora:ink:0.5> <lora:wash:0.25>\nNegative prompt: blurry\n"
        "Steps: 7, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, Seed: 3, "
        "Size: 64x64, Model: tiny"
    )


@given(st.lists(st.floats(-1, 2), min_size=2, max_size=8, unique=True))
@example([0.001, 0.002])
def test_two_strengths_never_share_a_file_name(strengths: list[float]):
    names = [picture_name(0, strength) for strength in strengths]
    assert len(set(names)) == len(names)
    assert [float(name[5:-4]) for name in names] == strengths


def test_a_file_name_holds_the_prompt_index_and_the_strength():
    assert picture_name(3, 0.25) == "p03_s0.25.png"
    assert picture_name(0, 1) == "p00_s1.00.png"
