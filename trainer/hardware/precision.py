"""Which precision is faster here, measured once and kept: bf16 shortens the time of wide layers, and lengthens that of narrow ones."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from trainer.atomic_files import write_atomically
from trainer.hardware.device import resolve_dtype

GAIN = 1.2  # bf16 must be so many times as fast as fp32: less is noise, and fp32 is the safer of the two
_MOST_LATENTS = 32  # of a side: who trains on a CPU trains on small pictures


def precision_for(
    precision: str, device: torch.device, configs: Path, kept: Path | None = None
) -> torch.dtype:
    """Of the frozen base. Raises ConfigError where the one asked for can't run.

    Only a CPU that multiplies bf16 by itself is measured: cards with bf16 are always faster with it, other CPUs never.

    Args:
        configs: the base's configuration, for its layers.
        kept: a folder where the answer is kept, so that a resumed run computes as it began.
    """
    if precision != "auto" or device.type != "cpu" or not has_bf16_instructions():
        return resolve_dtype(precision, device)
    unet = json.loads((configs / "unet" / "config.json").read_text(encoding="utf-8"))
    path = kept / "precision.json" if kept else None
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8")) if path else {}
    key = f"{platform.processor() or platform.machine()} {torch.__version__} {torch.get_num_threads()} {unet['block_out_channels']}"
    if key not in known:
        known[key] = "bf16" if bf16_is_faster(unet) else "fp32"
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known).encode())
    return resolve_dtype(known[key], device)


def has_bf16_instructions() -> bool:
    """Whether this CPU has instructions for products of bf16 (AVX-512 BF16, AMX, or ARM's)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_sve_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in asked)


def bf16_is_faster(unet: dict[str, Any]) -> bool:
    """Whether bf16 is worth it for a UNet of this configuration."""
    seconds = {dtype: time_blocks(unet, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] * GAIN < seconds[torch.float32]


def time_blocks(unet: dict[str, Any], dtype: torch.dtype, repeats: int = 5) -> float:
    """About what the blocks of a UNet take in one training step: one of each kind and level is timed, as often as there are any.

    Whole blocks, because their products alone say too little: on narrow layers the gain in these is lost in what is between.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    widths, times, cross = (
        unet["block_out_channels"],
        4 * unet["block_out_channels"][0],
        unet["cross_attention_dim"],
    )
    heads, depths = (
        _by_level(unet[name], len(widths)) for name in ("attention_head_dim", "transformer_layers_per_block")
    )
    total = 0.0
    for level, width in enumerate(widths):
        side, deepest = min(unet["sample_size"], _MOST_LATENTS) >> level, level == len(widths) - 1
        residual = ResnetBlock2D(in_channels=width, temb_channels=times, groups=unet["norm_num_groups"])
        picture, embedded = torch.randn(1, width, side, side), torch.randn(1, times)
        # Down and up again, and through the middle.
        blocks = 2 * unet["layers_per_block"] + 1 + 2 * deepest
        total += blocks * _seconds(residual, [picture, embedded], dtype, repeats)
        if "CrossAttn" in unet["down_block_types"][level]:
            attending = BasicTransformerBlock(
                width, heads[level], width // heads[level], cross_attention_dim=cross
            )
            tokens, text = torch.randn(1, side * side, width), torch.randn(1, 77, cross)
            blocks = depths[level] * (2 * unet["layers_per_block"] + 1 + deepest)
            total += blocks * _seconds(attending, [tokens, None, text], dtype, repeats)
    return total


def _seconds(
    block: torch.nn.Module, values: list[torch.Tensor | None], dtype: torch.dtype, repeats: int
) -> float:
    """The least time of a frozen block, forward and backward to its first value."""
    block.to(dtype).requires_grad_(False)
    first, *others = (value if value is None else value.to(dtype) for value in values)
    assert first is not None
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        out = block(first.detach().requires_grad_(), *others)
        out.backward(torch.ones_like(out))
        times.append(time.perf_counter() - begun)
    return min(times)


def _by_level(value: Any, levels: int) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * levels
