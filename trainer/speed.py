"""Which precision is faster here, measured once and kept: bf16 halves the time of wide layers, and lengthens that of narrow ones."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from trainer.device import dtype_of
from trainer.run import write_atomically

GAIN = 1.2  # bf16 must be so many times as fast as fp32: less is noise, and fp32 is the safer of the two
_TOKENS = 256


def precision_for(precision: str, device: torch.device, configs: Path, kept: Path | None = None) -> torch.dtype:
    """Of the frozen base. Raises ConfigError where the one asked for can't run.

    Only a CPU that multiplies bf16 by itself is measured: cards with bf16 are always faster with it, other CPUs never.

    Args:
        configs: the base's configuration, for its width.
        kept: a folder where the answer is kept, so that a resumed run computes as it began.
    """
    if precision != "auto" or device.type != "cpu" or not multiplies_bf16():
        return dtype_of(precision, device)
    width = int(json.loads((configs / "unet" / "config.json").read_text(encoding="utf-8"))["block_out_channels"][-1])
    path = kept / "precision.json" if kept else None
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8")) if path else {}
    key = f"{platform.processor() or platform.machine()} {torch.__version__} {torch.get_num_threads()} {width}"
    if key not in known:
        known[key] = "bf16" if pays(width) else "fp32"
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known).encode())
    return dtype_of(known[key], device)


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 (AVX-512 BF16, AMX, or ARM's)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_sve_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in asked)


def pays(width: int) -> bool:
    seconds = {dtype: block_seconds(width, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] * GAIN < seconds[torch.float32]


@torch.no_grad()
def block_seconds(width: int, dtype: torch.dtype, repeats: int = 5) -> float:
    """The least time of one feed-forward layer of a transformer block, with its normalisation and activation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, width, generator=generator).to(dtype)
    wide, narrow = (torch.randn(shape, generator=generator).to(dtype) for shape in ((8 * width, width), (width, 4 * width)))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        value, gate = F.linear(F.layer_norm(x, (width,)), wide).chunk(2, dim=-1)
        F.linear(value * F.gelu(gate), narrow)
        times.append(time.perf_counter() - begun)
    return min(times)
