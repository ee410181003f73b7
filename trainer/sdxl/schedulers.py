"""Noise schedule of a base model: the scheduler that matches its prediction type and terminal SNR."""

from __future__ import annotations

from typing import Any, cast

from diffusers import EulerDiscreteScheduler

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.sdxl.base import Base
from trainer.sdxl.protocols import NoiseScheduler


def training_scheduler(config: TrainConfig, base: Base) -> NoiseScheduler:
    """Returns the scheduler with the noise schedule of a training.

    Raises:
        ConfigError: if the settings do not fit the base's prediction type.
    """
    prediction = base.prediction_type if config.prediction_type == "auto" else config.prediction_type
    base_has_zero_snr = _has_zero_terminal_snr(base) and prediction == "v_prediction"
    zero = base_has_zero_snr if config.zero_terminal_snr == "auto" else config.zero_terminal_snr == "on"
    if zero and prediction != "v_prediction":
        need = f"zero_terminal_snr needs a v-prediction base model, but {base.name} predicts noise"
        raise ConfigError([f"{need}; set it to off"])
    return build_scheduler(base, prediction, zero)


def _has_zero_terminal_snr(base: Base) -> bool:
    return bool(base.scheduler().config.get("rescale_betas_zero_snr", False))


def build_scheduler(base: Base, prediction: str, zero: bool) -> NoiseScheduler:
    """Returns the base's scheduler for a prediction type.

    Args:
        prediction: `epsilon` or `v_prediction`.
        zero: rescales the schedule to zero terminal SNR and starts sampling at the last timestep (Lin et al.
            2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", sections 3.1 and 3.3).
    """
    changes: dict[str, Any] = {"prediction_type": prediction, "rescale_betas_zero_snr": zero}
    if zero:
        changes["timestep_spacing"] = "trailing"
    return cast(NoiseScheduler, EulerDiscreteScheduler.from_config(base.scheduler().config, **changes))


def scheduler_of_lora_files(metadata: list[dict[str, str]], base: Base) -> NoiseScheduler:
    """Returns the scheduler that LoRA files were trained with, or the base's if the files don't name one.

    Files that name another base are ignored, because the prediction type belongs to the base; files that
    contradict each other are ignored too.

    Args:
        metadata: of each file.
    """
    own = [entries for entries in metadata if _is_for(entries, base)]
    trained = {prediction for prediction in map(_prediction_of, own) if prediction[0]}
    if len(trained) != 1:
        return base.scheduler()
    prediction, zero = trained.pop()
    has_zero_snr = _has_zero_terminal_snr(base) if zero is None else zero
    return build_scheduler(base, prediction, has_zero_snr and prediction == "v_prediction")


def _is_for(metadata: dict[str, str], base: Base) -> bool:
    """Returns whether a file names this base, or no base."""
    name = metadata.get("ss_sd_model_name", "None")
    return name in ("None", "") or name.removesuffix(".safetensors") == base.name


def _prediction_of(metadata: dict[str, str]) -> tuple[str, bool | None]:
    """Returns (prediction type or "", zero terminal SNR or None where the metadata don't name it)."""
    v = {"True": "v_prediction", "False": "epsilon"}.get(metadata.get("ss_v_parameterization", ""), "")
    spec = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}.get(
        metadata.get("modelspec.prediction_type", ""), ""
    )
    return v or spec, {"True": True, "False": False}.get(metadata.get("ss_zero_terminal_snr", ""))
