"""The UNet's transformer blocks translated by torch.compile: one translation for each shape, shared by all blocks of it.

Inside a translated block LoRA is its plain formula, which the compiler fuses; `trainer.adapter.fused_linear` is the form
without a compiler. What was translated is kept on disk, so that the next training of the same shapes starts at once.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from trainer.adapter.patching import restore_forwards
from trainer.config import TrainConfig
from trainer.errors import ConfigError

_WIDE = 320  # channels of SDXL's first level: narrower UNets take less time than the compiler
_STEPS = 300  # a shorter training is over before the translation has paid
_SHAPES = 256  # buckets, rows and modes of a training, each with its own translation


def should_compile(config: TrainConfig, unet: Any) -> bool:
    """Whether this training is compiled. Raises ConfigError where it is asked for and can't be."""
    if config.compile == "off":
        return False
    on_card = unet.device.type == "cuda"
    if config.compile == "auto":
        whole = config.gradient_checkpointing in ("none", "all")
        large = unet.config.block_out_channels[0] >= _WIDE and config.steps >= _STEPS
        return on_card and has_compiler(unet.device) and whole and large
    check_compiler(config, unet.device)
    if config.gradient_checkpointing not in ("none", "all"):
        raise ConfigError(
            [
                f"compile on goes with gradient_checkpointing none or all, not {config.gradient_checkpointing}; set one of them"
            ]
        )
    return True


def check_compiler(config: TrainConfig, device: torch.device) -> None:
    """Raises ConfigError where compiling is asked for and the compiler's own compiler is missing."""
    if config.compile == "on" and not has_compiler(device):
        what = "Triton (pip install triton)" if device.type == "cuda" else "a C++ compiler such as g++"
        raise ConfigError([f"compile on needs {what}; install it, or set compile to auto"])


def has_compiler(device: torch.device) -> bool:
    """Whether the compiler's own compiler is there: Triton for a card, C++ for a CPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    if device.type != "cpu":
        return False
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


def compile_blocks(unet: Any, kept: Path | None = None, **options: Any) -> None:
    """To be called after the adapter is attached; the first step of each shape takes the translation's time.

    Args:
        kept: a folder for what is translated.
        options: more for torch.compile, such as its mode.
    """
    if kept:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept.resolve()))
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _SHAPES)
    dynamo.config.accumulated_recompile_limit = max(dynamo.config.accumulated_recompile_limit, 4 * _SHAPES)
    dynamo.config.suppress_errors = True  # a block that can't be translated runs as it is
    restore_forwards(unet)  # one code for all blocks: each has its own where attention is taken over
    unet.compile_repeated_blocks(dynamic=False, **options)
