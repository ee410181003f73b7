"""The processes of one training, started by `torchrun`: averaged gradients and a common end.

Every process computes its own batch of each step and then has the same weights as all others. The result
equals one process with as many times the batch; only the first process writes files and events.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer.config import TrainConfig
from trainer.runs.commands import CommandInbox
from trainer.training.trackers import start_tracker, tracker_options


def open_accelerator(
    config: TrainConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> Accelerator:
    """Returns the accelerator of this process, with its tracker started.

    Raises:
        ConfigError: the tracker can't be started.
    """
    # In fp16 small gradients would become zero without accelerate's loss scaling; bf16 has fp32's exponents.
    mixed_precision = "fp16" if dtype == torch.float16 else "no"
    options = tracker_options(config, folder)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed_precision, **options)
    start_tracker(accelerator, config, folder)
    return accelerator


def prepare_optimizer(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Returns accelerate's wrapper of the optimizer where there is a loss scaler or another process."""
    if accelerator.scaler is None and accelerator.num_processes == 1:
        return optimizer
    return accelerator.prepare_optimizer(optimizer)


def batch_position(accelerator: Accelerator, number: int) -> int:
    """Returns the position, in the training's order, of this process's batch `number` (from 0)."""
    return number * accelerator.num_processes + accelerator.process_index


def stop_requested(accelerator: Accelerator, inbox: CommandInbox) -> bool:
    """Returns True when any process was requested to stop, so that all leave at the same step."""
    requested = inbox.stop_requested()
    if accelerator.num_processes == 1:
        return requested
    requests = torch.tensor(float(requested), device=accelerator.device)
    return bool(accelerator.reduce(requests, reduction="sum") > 0)  # pyright: ignore


def average_and_clip_gradients(
    accelerator: Accelerator, vectors: list[torch.nn.Parameter], max_norm: float
) -> torch.Tensor | None:
    """Replaces gradients by their mean over the processes, and limits their norm to `max_norm`.

    Returns the norm before it is scaled; None in fp16, where gradients may overflow: the loss scaler then
    skips the step and halves its scale, so a norm that is not finite is no error there.

    Args:
        max_norm: 0 does not limit the norm.
    """
    if accelerator.num_processes > 1:
        for vector in vectors:
            assert vector.grad is not None
            vector.grad.copy_(accelerator.reduce(vector.grad, reduction="mean"))  # pyright: ignore
    norm = accelerator.clip_grad_norm_(vectors, max_norm or math.inf)
    return norm if accelerator.scaler is None else None
