"""The faster precision on this CPU, measured once: bf16 speeds up wide layers and slows down narrow ones."""

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

MIN_GAIN = 1.2  # by which bf16 must be faster: less could be noise of the measurement, and fp32 is more exact
_MAX_LATENTS = 32  # of a side; trainings on a CPU use small images


def precision_for(
    precision: str, device: torch.device, configs: Path, cache_folder: Path | None = None
) -> torch.dtype:
    """Returns the precision of the frozen base.

    Only a CPU with instructions for bf16 is measured: cards that support bf16 are always faster with it,
    other CPUs never.

    Args:
        configs: folder of the base's configuration.
        cache_folder: keeps the result, so that a resumed run has the precision that it began with.

    Raises:
        ConfigError: if the device can't compute in the precision that is set.
    """
    if precision != "auto" or device.type != "cpu" or not has_bf16_instructions():
        return resolve_dtype(precision, device)
    unet = json.loads((configs / "unet" / "config.json").read_text(encoding="utf-8"))
    path = cache_folder / "precision.json" if cache_folder else None
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8")) if path else {}
    processor = platform.processor() or platform.machine()
    key = f"{processor} {torch.__version__} {torch.get_num_threads()} {unet['block_out_channels']}"
    if key not in known:
        known[key] = "bf16" if bf16_is_faster(unet) else "fp32"
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known).encode())
    return resolve_dtype(known[key], device)


def has_bf16_instructions() -> bool:
    """Returns whether this CPU has instructions for products in bf16: AVX-512 BF16, AMX or ARM SVE."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_sve_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)


def bf16_is_faster(unet: dict[str, Any]) -> bool:
    """Measures whether bf16 is faster by MIN_GAIN for a UNet of this configuration."""
    seconds = {dtype: time_blocks(unet, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] * MIN_GAIN < seconds[torch.float32]


def time_blocks(unet: dict[str, Any], dtype: torch.dtype, repeats: int = 5) -> float:
    """Estimates the seconds of a UNet's blocks in one training step.

    One block of each kind and level is timed and multiplied by the number of such blocks. Whole blocks are
    timed rather than their matrix products, because narrow layers lose the products' gain in the operations
    between them.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    widths, text_width = unet["block_out_channels"], unet["cross_attention_dim"]
    time_width = 4 * widths[0]
    heads = _by_level(unet["attention_head_dim"], len(widths))
    depths = _by_level(unet["transformer_layers_per_block"], len(widths))
    total = 0.0
    for level, width in enumerate(widths):
        side, is_deepest = min(unet["sample_size"], _MAX_LATENTS) >> level, level == len(widths) - 1
        residual = ResnetBlock2D(in_channels=width, temb_channels=time_width, groups=unet["norm_num_groups"])
        hidden, time_embedding = torch.randn(1, width, side, side), torch.randn(1, time_width)
        # `layers_per_block` on the way down, one more on the way up, and two in the middle block.
        blocks = 2 * unet["layers_per_block"] + 1 + 2 * is_deepest
        total += blocks * _seconds(residual, [hidden, time_embedding], dtype, repeats)
        if "CrossAttn" in unet["down_block_types"][level]:
            transformer = BasicTransformerBlock(
                width, heads[level], width // heads[level], cross_attention_dim=text_width
            )
            tokens, text = torch.randn(1, side * side, width), torch.randn(1, 77, text_width)
            blocks = depths[level] * (2 * unet["layers_per_block"] + 1 + is_deepest)
            total += blocks * _seconds(transformer, [tokens, None, text], dtype, repeats)
    return total


def _seconds(
    block: torch.nn.Module, values: list[torch.Tensor | None], dtype: torch.dtype, repeats: int
) -> float:
    """Returns the shortest time of a frozen block's forward pass and backward pass to its first input."""
    block.to(dtype).requires_grad_(False)
    first, *others = (value if value is None else value.to(dtype) for value in values)
    assert first is not None
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        output = block(first.detach().requires_grad_(), *others)
        output.backward(torch.ones_like(output))
        times.append(time.perf_counter() - start)
    return min(times)


def _by_level(value: Any, levels: int) -> list[int]:
    """Returns a setting of the configuration that is one number for all levels, or a list, as a list."""
    return list(value) if isinstance(value, list) else [value] * levels
