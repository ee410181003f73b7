"""Optimizers and schedules by name, each from its own library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError


def build_optimizer(config: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """`groups` hold `params` and `lr`. Raises ConfigError when the optimizer can't run here."""
    return _OPTIMIZERS[config.optimizer](config, groups, device)


def _adamw(config: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda"))


def _adamw8bit(config: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    if device.type != "cuda":
        raise ConfigError(["optimizer adamw8bit needs a CUDA card; choose adamw"])
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(["optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw"]) from None
    return AdamW8bit(groups, weight_decay=config.weight_decay)


def _prodigy(config: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        raise ConfigError([f"prodigy finds one rate for all parts, so their rates must be equal, not {sorted(rates)}; set 1"])
    decay: Any = config.weight_decay
    return Prodigy(groups, lr=groups[0]["lr"], weight_decay=decay, use_bias_correction=True, safeguard_warmup=True)


def _adafactor(config: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return Adafactor(groups, lr=groups[0]["lr"], weight_decay=config.weight_decay, **fixed)


_OPTIMIZERS: dict[str, Callable[[TrainConfig, list[dict[str, Any]], torch.device], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
    "adafactor": _adafactor,
}


def rate_factor(config: TrainConfig, step: int) -> float:
    """What the learning rate is multiplied with at `step` (from 0): warm-up, then the schedule down to 0."""
    warmup = min(config.warmup_steps, config.steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, config.steps - warmup)  # in [0, 1)
    match config.schedule:
        case "linear":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * (progress * config.restarts % 1)))
        case _:
            return 1.0


def set_rate(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
