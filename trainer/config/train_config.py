"""`TrainConfig`: all settings of a training in one frozen dataclass, and the contradictions between them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.declaration import coerced_values
from trainer.config.groups.adapter import AdapterSettings, block_values
from trainer.config.groups.captions import CaptionSettings
from trainer.config.groups.dataset import DatasetSettings
from trainer.config.groups.file import FileSettings
from trainer.config.groups.objective import ObjectiveSettings
from trainer.config.groups.optimizer import OptimizerSettings
from trainer.config.groups.output import OutputSettings
from trainer.config.groups.run import RunSettings
from trainer.config.groups.training import TrainingSettings
from trainer.config.groups.validation import ValidationSettings
from trainer.config.validation import problems_in
from trainer.errors import ConfigError


# A dataclass collects inherited fields from its last base to its first. The bases are therefore listed from
# the last group to the first; `config.toml`, the form and docs/settings.md have the reverse order.
@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    FileSettings,
    ValidationSettings,
    OutputSettings,
    DatasetSettings,
    CaptionSettings,
    ObjectiveSettings,
    OptimizerSettings,
    AdapterSettings,
    TrainingSettings,
    RunSettings,
):
    """All settings of a training besides the pictures. Validated on creation, never changed afterwards."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every problem found."""
        self.validate()

    def validate(self) -> None:
        """Raises ConfigError with every invalid value, or, if all are valid, with every contradiction."""
        problems = problems_in(self) or [*_contradictions(self)]
        if problems:
            raise ConfigError(problems)


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """Creates a config from values of TOML, form or command line; settings without a value get their default.

    Raises:
        ConfigError: with every unknown name, or every problem with the values.
    """
    names = [declared.name for declared in dataclasses.fields(TrainConfig)]
    unknown = [_unknown_setting(name, names) for name in values if name not in names]
    if unknown:
        raise ConfigError(unknown)
    chosen = coerced_values(TrainConfig, values)
    if isinstance(chosen.get("gradient_checkpointing"), bool):  # runs of version 0.1 hold true or false
        chosen["gradient_checkpointing"] = "all" if chosen["gradient_checkpointing"] else "none"
    return TrainConfig(**chosen)


def _unknown_setting(name: str, names: list[str]) -> str:
    similar = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {similar[0]}?" if similar else "docs/settings.md lists all settings"
    return f"unknown setting {name!r}; {hint}"


def _contradictions(config: TrainConfig) -> Iterator[str]:
    """Problems of settings that are valid alone and wrong together."""
    yield from _optimizer_contradictions(config)
    yield from _objective_contradictions(config)
    if config.bucket_min and config.bucket_max and config.bucket_min > config.bucket_max:
        yield f"bucket_min {config.bucket_min} exceeds bucket_max {config.bucket_max}; lower bucket_min"
    if config.validation_share and config.validation_folder:
        yield "validation_share and validation_folder both choose validation images; set only one of them"
    if config.format == "diffusers" and config.network not in ("lora", "locon"):
        yield f"format diffusers can't store a {config.network} network; set format to kohya"


def _optimizer_contradictions(config: TrainConfig) -> Iterator[str]:
    if config.optimizer == "custom" and "." not in config.optimizer_class:
        yield "optimizer custom needs optimizer_class, a dotted name such as torch.optim.SGD"
    if config.optimizer != "custom" and config.optimizer_class:
        yield "optimizer_class is used only with optimizer custom; set optimizer to custom, or leave it empty"
    if config.optimizer == "schedulefree":
        if config.schedule != "constant":
            yield "optimizer schedulefree replaces the schedule; set schedule to constant"
        if config.ema_decay:
            yield "optimizer schedulefree already averages the weights; set ema_decay to 0"
        if config.scale_weight_norms:
            yield "optimizer schedulefree averages the weights, which undoes scale_weight_norms; set it to 0"
    if config.optimizer == "prodigy":
        several_rates = len(set(block_values(config.block_rates)) - {0.0}) > 1
        if config.lora_plus_ratio != 1 or several_rates:
            yield (
                "prodigy adapts one learning rate for all parameters; set lora_plus_ratio to 1 and leave "
                "block_rates empty, or choose adamw"
            )


def _objective_contradictions(config: TrainConfig) -> Iterator[str]:
    if config.timestep_min > config.timestep_max:
        yield (f"timestep_min {config.timestep_min} exceeds timestep_max {config.timestep_max}; lower it")
    if config.zero_terminal_snr == "on" and config.prediction_type == "epsilon":
        yield (
            "zero_terminal_snr needs prediction_type v_prediction: with epsilon the last timestep has no "
            "signal to learn from; set zero_terminal_snr to off"
        )
