"""A job of the line (trainer/runs/queue.py), and the device that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KINDS = ("train", "caption", "lora", "draw")


@dataclass(frozen=True, kw_only=True)
class Device:
    id: str  # "cpu", "mps", or the number of a CUDA device
    words: str  # "CUDA (NVIDIA H200)"
    visible: str | None = None  # CUDA_VISIBLE_DEVICES of a child that gets it


@dataclass(frozen=True, kw_only=True)
class Job:
    id: str
    kind: str  # one of KINDS
    folder: Path
    state: str
    lane: str  # the device that it must have; "" takes any
    device: str  # where it runs; "" while it waits
    queue_position: int = 0  # 1 is next; 0 when it does not wait
    stops: int = 0  # how often it was told to stop
    signal: int = 0  # what killed it, when this process saw it
