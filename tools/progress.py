"""State of a training on disk, and communication between the processes of `torchrun`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Writes the `state_dict` of each part and the number of finished steps.

    The file appears complete or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_state(path: Path, **parts: Any) -> int:
    """Loads the saved state of each part; returns the number of finished steps, 0 if there is no file."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def join_processes() -> tuple[int, int]:
    """Returns (rank, number of processes), (0, 1) without `torchrun`.

    Under `torchrun` each process has one thread: on two cores, two processes are faster than two threads.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    return rank, world


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replaces gradients by their mean over all processes."""
    if not dist.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, total in zip(parameters, sum_over_processes(gradients), strict=True):
        parameter.grad = total / dist.get_world_size()


def sum_over_processes(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the sum of each tensor over all processes; all tensors are one message."""
    if not dist.is_initialized():
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
