"""Optimizers by name, each from its own library, and the learning rate's schedules."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError

Groups = list[dict[str, Any]]


def build_optimizer(config: TrainConfig, groups: Groups, device: torch.device) -> torch.optim.Optimizer:
    """`groups` hold `params` and `lr`. Raises ConfigError when the optimizer can't run here or knows no such argument."""
    arguments = parse_arguments(config.optimizer_args)
    try:
        return _OPTIMIZERS[config.optimizer](config, groups, device, arguments)
    except (TypeError, ValueError, AssertionError) as error:
        if not arguments and config.optimizer != "custom":
            raise
        raise ConfigError(
            [
                f"optimizer {config.optimizer_class or config.optimizer} refuses its arguments ({error}); mend optimizer_args"
            ]
        ) from error


def parse_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """`betas=(0.9, 0.99)` as a Python literal; what is none stays a text. Raises ConfigError."""
    arguments = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError([f"optimizer_args wants name=value, not {text!r}"])
        if name.strip() in ("params", "lr"):
            raise ConfigError([f"optimizer_args can't set {name.strip()}; set the learning rates instead"])
        try:
            arguments[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            arguments[name.strip()] = value.strip()
    return arguments


def _adamw(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, **{"weight_decay": config.weight_decay, "fused": device.type in ("cpu", "cuda"), **arguments}
    )


def _adamw8bit(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    if device.type != "cuda":
        raise ConfigError(["optimizer adamw8bit needs a CUDA card; choose adamw"])
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            ["optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw"]
        ) from None
    return AdamW8bit(groups, **{"weight_decay": config.weight_decay, **arguments})


def _prodigy(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        raise ConfigError(
            [
                f"prodigy finds one rate for all parts, so their rates must be equal, not {sorted(rates)}; set 1"
            ]
        )
    defaults = {"weight_decay": config.weight_decay, "use_bias_correction": True, "safeguard_warmup": True}
    return Prodigy(groups, lr=groups[0]["lr"], **{**defaults, **arguments})


def _adafactor(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    fixed = {
        "weight_decay": config.weight_decay,
        "scale_parameter": False,
        "relative_step": False,
        "warmup_init": False,
    }
    return Adafactor(groups, lr=groups[0]["lr"], **{**fixed, **arguments})


def _lion(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2."""
    from pytorch_optimizer import Lion

    return Lion(groups, lr=groups[0]["lr"], **{"weight_decay": config.weight_decay, **arguments})


def _schedulefree(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    """Defazio et al. 2024, "The Road Less Scheduled"; warm-up comes from the schedule."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(
        groups, lr=groups[0]["lr"], **{"weight_decay": config.weight_decay, **arguments}
    )
    optimizer.train()
    return optimizer


def _came(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    """Luo et al. 2023, "CAME: Confidence-guided Adaptive Memory Efficient Optimization"."""
    from pytorch_optimizer import CAME

    return CAME(groups, lr=groups[0]["lr"], **{"weight_decay": config.weight_decay, **arguments})


def _custom(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    module, _, name = config.optimizer_class.rpartition(".")
    try:
        chosen = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(
            [
                f"optimizer_class {config.optimizer_class} can't be imported; install its package, or mend the name"
            ]
        ) from None
    if not (isinstance(chosen, type) and issubclass(chosen, torch.optim.Optimizer)):
        raise ConfigError(
            [
                f"optimizer_class {config.optimizer_class} is no PyTorch optimizer; name one, like torch.optim.SGD"
            ]
        )
    named = inspect.signature(chosen).parameters
    decay = {"weight_decay": config.weight_decay} if "weight_decay" in named else {}
    settings = {"lr": groups[0]["lr"], **decay, **arguments}
    trial = torch.nn.Parameter(torch.zeros(2, 2))
    trial.grad = torch.ones(2, 2)
    tried: Any = chosen([{"params": [trial], "lr": settings["lr"]}], **settings)
    if is_schedule_free(tried):
        tried.train()
    try:
        tried.step()
    except (TypeError, RuntimeError, NotImplementedError):
        raise ConfigError(
            [
                f"optimizer_class {config.optimizer_class} wants more than a gradient for a step; choose another"
            ]
        ) from None
    optimizer: Any = chosen(groups, **settings)
    if is_schedule_free(optimizer):
        optimizer.train()
    return optimizer


_OPTIMIZERS: dict[
    str, Callable[[TrainConfig, Groups, torch.device, dict[str, Any]], torch.optim.Optimizer]
] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
    "adafactor": _adafactor,
    "lion": _lion,
    "schedulefree": _schedulefree,
    "came": _came,
    "custom": _custom,
}


def is_schedule_free(optimizer: Any) -> bool:
    """Whether the weights it trains are not the ones it recommends, as with schedule-free optimizers."""
    return any("train_mode" in group for group in optimizer.param_groups) and hasattr(optimizer, "eval")


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """What the learning rate is multiplied with at `step` (from 0): warm-up, then the schedule down to `min_rate`."""
    warmup = min(config.warmup_steps, config.steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, config.steps - warmup)  # in [0, 1)
    factor = _falling(config, step, warmup, progress)
    return config.min_rate + (1 - config.min_rate) * factor if config.min_rate else factor


def _falling(config: TrainConfig, step: int, warmup: int, progress: float) -> float:
    """The schedule after warm-up, from 1 towards 0."""
    match config.schedule:
        case "linear":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * (progress * config.restarts % 1)))
        case "polynomial":
            return (1 - progress) ** config.schedule_power
        case (
            "rex"
        ):  # Chen et al. 2022, "REX: Revisiting Budgeted Training with an Improved Schedule", section 4
            return (1 - progress) / (0.5 + 0.5 * (1 - progress))
        case "inverse_sqrt":  # Vaswani et al. 2017, equation 3, 1 at the end of warm-up
            return math.sqrt(max(warmup, 1) / (step - warmup + max(warmup, 1)))
        case "wsd":  # warm-up, stable, decay by 1 - sqrt: Haegele et al. 2024, section 3
            decay = max(1, round(config.decay_share * config.steps))
            return 1 - math.sqrt(max(0, step - (config.steps - decay)) / decay)
        case _:
            return 1.0


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
