"""Which device and precision the work runs on."""

from __future__ import annotations

import os

import torch

from trainer.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device() -> torch.device:
    if torch.cuda.is_available():  # ROCm answers here too
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def describe(device: torch.device) -> str:
    """`CUDA (NVIDIA H200)`, `ROCm (...)`, `MPS`, `CPU (2 threads)`."""
    if device.type == "cuda":
        return f"{'ROCm' if torch.version.hip else 'CUDA'} ({torch.cuda.get_device_name(device)})"
    return "MPS" if device.type == "mps" else f"CPU ({torch.get_num_threads()} threads)"


def every_device() -> list[dict[str, str | None]]:
    """Each device that a training may have to itself, as trainer/queue.py knows it: `id`, `words`, `visible`."""
    if not torch.cuda.is_available():
        found = find_device()
        return [{"id": found.type, "words": describe(found), "visible": None}]
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    numbers = range(torch.cuda.device_count())
    return [{"id": str(n), "words": describe(torch.device("cuda", n)), "visible": named[n] if n < len(named) else str(n)} for n in numbers]


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Of the frozen base. Raises ConfigError for fp16 on a CPU, which has no kernels for it that pay."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(["precision fp16 needs a GPU; choose auto, fp32 or bf16"])
    return _DTYPES[precision]
