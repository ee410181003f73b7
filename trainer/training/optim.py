"""The optimizers, each from its own library, and the schedules of the learning rate."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError

Groups = list[dict[str, Any]]  # each with `params` and `lr`
Arguments = dict[str, Any]  # of an optimizer's constructor
Optimizer = torch.optim.Optimizer


def build_optimizer(config: TrainConfig, groups: Groups, device: torch.device) -> Optimizer:
    """Returns the optimizer of a config.

    Raises:
        ConfigError: the optimizer can't run on this device, or does not accept `optimizer_args`.
    """
    arguments = parse_arguments(config.optimizer_args)
    try:
        return _OPTIMIZERS[config.optimizer](config, groups, device, arguments)
    except (TypeError, ValueError, AssertionError) as error:
        if not arguments and config.optimizer != "custom":
            raise
        name = config.optimizer_class or config.optimizer
        message = f"optimizer {name} does not accept its arguments ({error}); correct optimizer_args"
        raise ConfigError([message]) from error


def parse_arguments(texts: tuple[str, ...]) -> Arguments:
    """Parses `betas=(0.9, 0.99)` as a Python literal; another value stays a string. Raises ConfigError."""
    arguments = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise ConfigError([f"optimizer_args needs name=value, not {text!r}"])
        if name in ("params", "lr"):
            raise ConfigError([f"optimizer_args can't set {name}; set the learning rates instead"])
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def _adamw(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    defaults = {"weight_decay": config.weight_decay, "fused": device.type in ("cpu", "cuda")}
    return torch.optim.AdamW(groups, **{**defaults, **arguments})


def _adamw8bit(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    if device.type != "cuda":
        raise ConfigError(["optimizer adamw8bit needs a CUDA card; choose adamw"])
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        message = "optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw"
        raise ConfigError([message]) from None
    return AdamW8bit(groups, **{"weight_decay": config.weight_decay, **arguments})


def _prodigy(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    from prodigyopt import Prodigy

    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        message = (
            f"prodigy uses one rate for all parts, so their rates must be equal, not {sorted(rates)}; set 1"
        )
        raise ConfigError([message])
    defaults = {"weight_decay": config.weight_decay, "use_bias_correction": True, "safeguard_warmup": True}
    return Prodigy(groups, lr=groups[0]["lr"], **{**defaults, **arguments})


def _adafactor(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    from transformers.optimization import Adafactor

    defaults = {
        "weight_decay": config.weight_decay,
        "scale_parameter": False,
        "relative_step": False,
        "warmup_init": False,
    }
    return Adafactor(groups, lr=groups[0]["lr"], **{**defaults, **arguments})


def _lion(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2."""
    from pytorch_optimizer import Lion

    return Lion(groups, lr=groups[0]["lr"], **{"weight_decay": config.weight_decay, **arguments})


def _schedulefree(
    config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments
) -> Optimizer:
    """Defazio et al. 2024, "The Road Less Scheduled"; warm-up comes from our schedule."""
    from schedulefree import AdamWScheduleFree

    defaults = {"weight_decay": config.weight_decay}
    optimizer = AdamWScheduleFree(groups, lr=groups[0]["lr"], **{**defaults, **arguments})
    optimizer.train()
    return optimizer


def _came(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    """Luo et al. 2023, "CAME: Confidence-guided Adaptive Memory Efficient Optimization"."""
    from pytorch_optimizer import CAME

    return CAME(groups, lr=groups[0]["lr"], **{"weight_decay": config.weight_decay, **arguments})


def _custom(config: TrainConfig, groups: Groups, device: torch.device, arguments: Arguments) -> Optimizer:
    name = config.optimizer_class
    chosen = _imported(name)
    accepts_decay = "weight_decay" in inspect.signature(chosen).parameters
    decay = {"weight_decay": config.weight_decay} if accepts_decay else {}
    settings = {"lr": groups[0]["lr"], **decay, **arguments}
    # A step on a small parameter now, so that an optimizer that needs a closure fails before the training
    # starts.
    trial = torch.nn.Parameter(torch.zeros(2, 2))
    trial.grad = torch.ones(2, 2)
    tried = _in_training_mode(chosen([{"params": [trial], "lr": settings["lr"]}], **settings))
    try:
        tried.step()
    except (TypeError, RuntimeError, NotImplementedError):
        message = f"optimizer_class {name} needs more than a gradient for a step; choose another"
        raise ConfigError([message]) from None
    return _in_training_mode(chosen(groups, **settings))


def _imported(path: str) -> Any:
    """Imports an optimizer's class by its dotted path. Raises ConfigError."""
    module, _, name = path.rpartition(".")
    try:
        chosen = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        message = f"optimizer_class {path} can't be imported; install its package, or correct the name"
        raise ConfigError([message]) from None
    if not (isinstance(chosen, type) and issubclass(chosen, Optimizer)):
        message = f"optimizer_class {path} is no PyTorch optimizer; name one, like torch.optim.SGD"
        raise ConfigError([message])
    return chosen


def _in_training_mode(optimizer: Any) -> Any:
    if is_schedule_free(optimizer):
        optimizer.train()
    return optimizer


_OPTIMIZERS: dict[str, Callable[[TrainConfig, Groups, torch.device, Arguments], Optimizer]] = {
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
    """Returns True when the weights in training differ from the recommended ones, which `eval()` sets."""
    return any("train_mode" in group for group in optimizer.param_groups) and hasattr(optimizer, "eval")


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Returns the learning rate's factor at `step` (from 0): warm-up, then the schedule to `min_rate`."""
    warmup = min(config.warmup_steps, config.steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, config.steps - warmup)  # in [0, 1)
    factor = _decay_factor(config, step, warmup, progress)
    return config.min_rate + (1 - config.min_rate) * factor if config.min_rate else factor


def _decay_factor(config: TrainConfig, step: int, warmup: int, progress: float) -> float:
    """Returns the schedule's factor after warm-up, from 1 towards 0."""
    match config.schedule:
        case "linear":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * (progress * config.restarts % 1)))
        case "polynomial":
            return (1 - progress) ** config.schedule_power
        case "rex":
            # Chen et al. 2022, "REX: Revisiting Budgeted Training with an Improved Schedule", section 4
            return (1 - progress) / (0.5 + 0.5 * (1 - progress))
        case "inverse_sqrt":  # Vaswani et al. 2017, equation 3, 1 at the end of warm-up
            return math.sqrt(max(warmup, 1) / (step - warmup + max(warmup, 1)))
        case "wsd":  # warm-up, stable, decay by 1 - sqrt: Haegele et al. 2024, section 3
            decay = max(1, round(config.decay_share * config.steps))
            return 1 - math.sqrt(max(0, step - (config.steps - decay)) / decay)
        case _:
            return 1.0


def set_learning_rates(optimizer: Optimizer, rates: list[float], factor: float) -> None:
    """Sets the learning rate of each group to its own rate times `factor`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def text_encoder_stop(config: TrainConfig) -> int:
    """Returns the number of steps after which the text encoders are trained no more."""
    if not (config.train_text_encoder_1 or config.train_text_encoder_2):
        return config.steps
    return math.floor(config.text_encoder_stop * config.steps)


def freeze(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Removes the gradients, so that the next step leaves the parameters alone.

    With gradients of zero, momentum and weight decay would still move them.
    """
    for parameter in parameters:
        parameter.grad = None
