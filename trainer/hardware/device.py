"""The device that the work runs on, and the precision that a setting stands for on it."""

from __future__ import annotations

import os

import torch

from trainer.errors import ConfigError
from trainer.hardware.limits import processor_count

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device() -> torch.device:
    """Returns the device of the work; on a CPU, also reserves one processor for other programs."""
    if torch.cuda.is_available():  # also true for ROCm
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(thread_count(torch.get_num_threads(), processor_count()))
    return torch.device("cpu")


def thread_count(threads: int, processors: int) -> int:
    """Returns the number of threads, one fewer than processors but at least 1.

    OpenMP's threads wait for each other by spinning. With one on each processor, a browser, a server or a
    second training beside them delays all of them: a step of the bundled base took 5 to over 50 times as long
    (benchmarks/NOTES.md).
    """
    return max(1, min(threads, processors - 1))


def describe(device: torch.device) -> str:
    """Returns `CUDA (NVIDIA H200)`, `ROCm (AMD ...)`, `MPS` or `CPU (3 threads)`."""
    if device.type == "cuda":
        return f"{'ROCm' if torch.version.hip else 'CUDA'} ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "MPS"
    count = torch.get_num_threads()
    return f"CPU ({count} thread{'s' * (count > 1)})"


def list_devices() -> list[dict[str, str | None]]:
    """Returns the devices that a training can have to itself, in the form that `trainer.runs.queue` reads.

    Each has `id`, `words` (a description) and `visible` (the value of CUDA_VISIBLE_DEVICES for a training on
    it).
    """
    if not torch.cuda.is_available():
        device = find_device()
        return [{"id": device.type, "words": describe(device), "visible": None}]
    # If this process itself sees some cards only, a child process must get their names, not their numbers
    # here.
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [
        {
            "id": str(number),
            "words": describe(torch.device("cuda", number)),
            "visible": names[number] if number < len(names) else str(number),
        }
        for number in range(torch.cuda.device_count())
    ]


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the precision of the frozen base for a setting: auto, fp32, bf16 or fp16.

    Raises:
        ConfigError: for fp16 on a CPU, whose kernels for it are slower than those for fp32.
    """
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(["precision fp16 needs a GPU; choose auto, fp32 or bf16"])
    return _DTYPES[precision]
