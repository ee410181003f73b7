"""What may be asked to be drawn: every value checked in one place, and samplers that keep the base's kind of prediction."""

from __future__ import annotations

import math
from pathlib import Path

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
def test_whatever_is_asked_is_a_request_within_its_bounds_or_a_sentence(values):
    try:
        request = sampling_config_from(values)
    except ConfigError as error:
        assert str(error)
        return
    assert 1 <= len(request.prompts) <= 16 and all(-1 <= strength <= 2 for strength in request.strengths)
    assert 1 <= request.steps <= 200 and math.isfinite(request.guidance) and request.sampler in SAMPLERS
    assert all(side == 0 or 64 <= side <= 4096 for side in (request.width, request.height))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_ends_at_the_picture_that_the_base_predicts(sampler: str, prediction_type: str):
    """A base that always knows the answer: what it says is computed from x_0 by the definitions (Salimans & Ho 2022)."""
    facts = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    euler = EulerDiscreteScheduler(prediction_type=prediction_type, **facts)
    scheduler = scheduler_for(sampler, euler)
    assert (
        scheduler.config.prediction_type == prediction_type
        and scheduler.config.beta_schedule == "scaled_linear"
    )
    scheduler.set_timesteps(20)
    clean = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    draws = torch.Generator().manual_seed(0)
    sample = torch.randn(clean.shape, generator=draws) * scheduler.init_noise_sigma
    noise = {"generator": [draws]} if SAMPLERS[sampler].draws_noise else {}
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(sample, timestep)
        kept = euler.alphas_cumprod[int(timestep)]
        epsilon = (seen - kept.sqrt() * clean) / (1 - kept).sqrt()
        said = epsilon if prediction_type == "epsilon" else kept.sqrt() * epsilon - (1 - kept).sqrt() * clean
        sample = scheduler.step(said, timestep, sample, **noise).prev_sample
    assert float((sample - clean).abs().max()) < 0.1


def test_rows_of_a_prompt_draw_the_same_noise_also_in_later_steps():
    warm = WarmBase(open_base("tiny-sdxl", MODELS))
    request = SamplingConfig(
        prompts=("a cat",), strengths=(0.0, 1.0), sampler="euler_a", steps=2
    )  # without a LoRA a strength means nothing
    first, second = (cell.image for cell in warm.generate(None, request))
    assert first.tobytes() == second.tobytes()
    assert (
        first.tobytes()
        != warm.generate(None, SamplingConfig(prompts=("a cat",), strengths=(0.0, 1.0), steps=2))[
            0
        ].image.tobytes()
    )


def test_a_picture_names_its_sampler_and_every_lora_as_a1111_does(tmp_path: Path):
    request = SamplingConfig(
        prompts=("a cat",), negative="blurry", sampler="dpmpp_2m_karras", steps=7, guidance=4.5, seed=3
    )
    cell = GeneratedImage(prompt_index=0, strength=0.5, image=Image.new("RGB", (64, 64)))
    save_image(
        cell, request, tmp_path / "a.png", base="tiny", loras=[("ink", 1.0), ("wash", 0.5), ("none", 0.0)]
    )
    assert Image.open(tmp_path / "a.png").text["parameters"] == (
        "a cat <lora:ink:0.5> <lora:wash:0.25>\nNegative prompt: blurry\n"
        "Steps: 7, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, Seed: 3, Size: 64x64, Model: tiny"
    )


@given(st.lists(st.floats(-1, 2), min_size=2, max_size=8, unique=True))
@example([0.001, 0.002])
def test_two_strengths_never_share_a_file(strengths: list[float]):
    names = [picture_name(0, strength) for strength in strengths]
    assert len(set(names)) == len(names) and [float(name[5:-4]) for name in names] == strengths
    assert picture_name(3, 0.25) == "p03_s0.25.png" and picture_name(0, 1) == "p00_s1.00.png"
