"""Noise schedules of a base model: the scheduler that matches its prediction type and terminal SNR."""

from __future__ import annotations

from typing import Any, cast

from diffusers import EulerDiscreteScheduler

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.sdxl.base import Base
from trainer.sdxl.protocols import NoiseScheduler


def scheduler_of(config: TrainConfig, base: Base) -> NoiseScheduler:
    """The sampler with the noise schedule that trains. Raises ConfigError when the base's prediction does not go with the settings."""
    prediction = base.prediction_type if config.prediction_type == "auto" else config.prediction_type
    of_base = _has_zero_terminal_snr(base) and prediction == "v_prediction"
    zero = of_base if config.zero_terminal_snr == "auto" else config.zero_terminal_snr == "on"
    if zero and prediction != "v_prediction":
        raise ConfigError(
            [f"zero_terminal_snr needs a base of v-prediction, and {base.name} predicts noise; set it to off"]
        )
    return scheduler_with(base, prediction, zero)


def _has_zero_terminal_snr(base: Base) -> bool:
    return bool(base.scheduler().config.get("rescale_betas_zero_snr", False))


def scheduler_with(base: Base, prediction: str, zero: bool) -> NoiseScheduler:
    """The base's sampler for a kind of prediction; with zero terminal SNR its steps begin at the last level.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed": section 3.1 and 3.3.
    """
    changed: dict[str, Any] = {"prediction_type": prediction, "rescale_betas_zero_snr": zero}
    if zero:
        changed["timestep_spacing"] = "trailing"
    return cast(NoiseScheduler, EulerDiscreteScheduler.from_config(base.scheduler().config, **changed))


def scheduler_of_files(facts: list[dict[str, str]], base: Base) -> NoiseScheduler:
    """The sampler that LoRA files were trained with, as their metadata say; the base's own where they say nothing of it.

    A file trained on another base does not count, since what the UNet predicts is the base's affair; nor do files that differ.

    Args:
        facts: the metadata of each file.
    """
    said = {found for found in map(_trained_with, [f for f in facts if _names(f, base)]) if found[0]}
    if len(said) != 1:
        return base.scheduler()
    prediction, zero = said.pop()
    of_base = _has_zero_terminal_snr(base) if zero is None else zero
    return scheduler_with(base, prediction, of_base and prediction == "v_prediction")


def _names(facts: dict[str, str], base: Base) -> bool:
    """Whether a file names this base, or none."""
    name = facts.get("ss_sd_model_name", "None")
    return name in ("None", "") or name.removesuffix(".safetensors") == base.name


def _trained_with(facts: dict[str, str]) -> tuple[str, bool | None]:
    """(kind of prediction or "", whether with zero terminal SNR if it says)."""
    v = {"True": "v_prediction", "False": "epsilon"}.get(facts.get("ss_v_parameterization", ""), "")
    spec = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}.get(
        facts.get("modelspec.prediction_type", ""), ""
    )
    return v or spec, {"True": True, "False": False}.get(facts.get("ss_zero_terminal_snr", ""))
