"""Which device and precision the work runs on."""

from __future__ import annotations

import os

import torch

from trainer.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device() -> torch.device:
    """What the work runs on, with one processor left to the rest of the machine where that is a CPU."""
    if torch.cuda.is_available():  # ROCm answers here too
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(thread_count(torch.get_num_threads(), _processors()))
    return torch.device("cpu")


def thread_count(threads: int, processors: int) -> int:
    """As many as there are, but for one processor, at least 1.

    OpenMP's threads wait for each other by spinning. With one on each processor, a browser, a server or a second training
    beside them keeps all of them waiting: of the bundled base, a step took 5 to over 50 times as long (benchmarks/NOTES.md).
    """
    return max(1, min(threads, processors - 1))


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device) -> str:
    """`CUDA (NVIDIA H200)`, `ROCm (...)`, `MPS`, `CPU (3 threads)`."""
    count = torch.get_num_threads()
    if device.type == "cuda":
        return f"{'ROCm' if torch.version.hip else 'CUDA'} ({torch.cuda.get_device_name(device)})"
    return "MPS" if device.type == "mps" else f"CPU ({count} thread{'s' * (count > 1)})"


def list_devices() -> list[dict[str, str | None]]:
    """Each device that a training may have to itself, as trainer/runs/queue.py knows it: `id`, `words`, `visible`."""
    if not torch.cuda.is_available():
        found = find_device()
        return [{"id": found.type, "words": describe(found), "visible": None}]
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    numbers = range(torch.cuda.device_count())
    return [
        {
            "id": str(n),
            "words": describe(torch.device("cuda", n)),
            "visible": named[n] if n < len(named) else str(n),
        }
        for n in numbers
    ]


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the frozen base. Raises ConfigError for fp16 on a CPU, which has no kernels for it that pay."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(["precision fp16 needs a GPU; choose auto, fp32 or bf16"])
    return _DTYPES[precision]
