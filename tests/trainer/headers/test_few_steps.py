"""Models distilled to few steps are found by their names, and the advice fits their kind."""

from __future__ import annotations

import pytest

from trainer.headers.few_steps import few_step_advice, few_step_kind
from trainer.sampling_config import SAMPLERS, SamplingConfig, sampling_config_from


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pytorch_lora_weights_lcm", "LCM"),
        ("lcm-lora-sdxl", "LCM"),
        ("sdxl_lightning_4step_lora", "Lightning"),
        ("juggernautXL_v9Rdphoto2Lightning", "Lightning"),
        ("DreamShaperXL_Turbo_v2", "Turbo"),
        ("dreamshaperXL_v21TurboDPMSDE", "Turbo"),
        ("Hyper-SDXL-8steps-lora", "Hyper-SD"),
        ("dmd2_sdxl_4step_lora", "DMD2"),
        ("tcd-sdxl-lora", "TCD"),
    ],
)
def test_a_model_of_few_steps_is_recognised_by_its_name(name: str, kind: str):
    recognised = few_step_kind(name, {})
    assert recognised
    assert recognised.name == kind
    assert recognised.sampler in SAMPLERS
    sampling_config_from(
        {
            "prompts": ["x"],
            "sampler": recognised.sampler,
            "steps": recognised.steps,
            "guidance": recognised.guidance,
        }
    )


@pytest.mark.parametrize("name", ["ink", "hyperrealism", "turbocharged", "lightnings", "calcmap", "admd", ""])
def test_other_names_are_not_taken_for_models_of_few_steps(name: str):
    assert few_step_kind(name, {}) is None


def test_the_title_counts_and_the_advice_ends_when_the_values_fit():
    kind = few_step_kind("my-file", {"modelspec.title": "SDXL Lightning"})
    usual = SamplingConfig(prompts=("x",))
    few = SamplingConfig(prompts=("x",), steps=4, guidance=1.0)
    assert "--sampler euler_sgm_uniform --steps 4 --guidance 1" in few_step_advice(kind, "my-file", usual)
    assert few_step_advice(kind, "my-file", few) == ""
    assert few_step_advice(None, "ink", usual) == ""
