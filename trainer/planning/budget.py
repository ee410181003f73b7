"""Memory and speed of the device that a training runs on, measured."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time

import psutil
import torch

from trainer.config import TrainConfig
from trainer.hardware.limits import available_memory

GB = 10**9
# CUDA's context and kernels; on a CPU the code, tables and vocabularies that a training loads
# (benchmarks/NOTES.md).
CONTEXT_BYTES, LIBRARY_BYTES = int(0.6 * GB), 45_000_000


def process_bytes(device: torch.device) -> int:
    """Returns the bytes of the device's memory that the process takes before any model is loaded."""
    return CONTEXT_BYTES if device.type == "cuda" else psutil.Process().memory_info().rss + LIBRARY_BYTES


def memory_budget(config: TrainConfig, device: torch.device) -> int:
    """Returns the bytes for the whole process.

    The setting `memory_budget`, or used and free memory together.
    """
    if config.memory_budget:
        return int(config.memory_budget * GB)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + CONTEXT_BYTES
    return available_memory() + psutil.Process().memory_info().rss


def free_bytes(device: torch.device) -> int:
    """Returns the bytes that can be allocated now, unused reserves of PyTorch's allocator included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory()


def peak_bytes(device: torch.device) -> int:
    """Returns the largest amount of the device's memory that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back_memory() -> None:
    """Returns freed memory to the operating system.

    glibc keeps the memory of freed tensors in fragments that the next model does not fit into, so that a
    process holds the VAE's memory while the UNet is loaded. `malloc_trim` exists in glibc only; other C
    libraries need no call.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 0) -> float:
    """Measures the floating point operations per second of a matrix product; takes under a second.

    Args:
        side: of the square matrices; 0 chooses one that suits the device.
    """
    side = side or (4096 if device.type == "cuda" else 1024)
    left = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)
