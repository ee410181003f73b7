"""A tool's training: its state on disk, whole or not at all, and its share of the work when a process runs on each core."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Writes the `state_dict` of each part and the number of steps done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_suffix(".part")
    with half_written.open("wb") as file:
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file)
        file.flush()
        os.fsync(file.fileno())
    half_written.replace(path)


def load_state(path: Path, **parts: Any) -> int:
    """Puts the saved state into each part; the number of steps done, 0 when nothing was saved."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def join_processes() -> tuple[int, int]:
    """(rank, processes): (0, 1) alone; under `torchrun`, one thread each (two processes outrun two threads here)."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    return rank, world


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """The mean gradient over all processes."""
    if not dist.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, total in zip(parameters, sums(gradients), strict=True):
        parameter.grad = total / dist.get_world_size()


def sums(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor's sum over all processes, in one message."""
    if not dist.is_initialized():
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
