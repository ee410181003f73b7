"""Compilation of the UNet's transformer blocks by torch.compile, once for each shape.

In a compiled block, LoRA is its plain formula, which the compiler fuses; `trainer.adapter.fused_linear` is
the form without a compiler. Compiled code is kept on disk, so that the next training of the same shapes
starts at once.
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
from trainer.sdxl.protocols import UNet

_MIN_WIDTH = (
    320  # channels of SDXL's first level; steps of narrower UNets are too short to gain from compilation
)
_MIN_STEPS = 300  # a shorter training ends before it has saved the time of the compilation
_MAX_SHAPES = 256  # buckets, rows and modes of a training, each compiled on its own


def should_compile(config: TrainConfig, unet: UNet) -> bool:
    """Returns whether a training is compiled.

    Raises:
        ConfigError: if `compile` is on and can't be done.
    """
    if config.compile == "off":
        return False
    if config.compile == "auto":
        is_supported = config.gradient_checkpointing in ("none", "all")
        pays = unet.config["block_out_channels"][0] >= _MIN_WIDTH and config.steps >= _MIN_STEPS
        return unet.device.type == "cuda" and has_compiler(unet.device) and is_supported and pays
    check_compiler(config, unet.device)
    if config.gradient_checkpointing not in ("none", "all"):
        level = config.gradient_checkpointing
        raise ConfigError(
            [f"compile on needs gradient_checkpointing none or all, not {level}; change one of them"]
        )
    return True


def check_compiler(config: TrainConfig, device: torch.device) -> None:
    """Raises ConfigError if `compile` is on and the compiler that torch.compile calls is missing."""
    if config.compile == "on" and not has_compiler(device):
        missing = "Triton (pip install triton)" if device.type == "cuda" else "a C++ compiler such as g++"
        raise ConfigError([f"compile on needs {missing}; install it, or set compile to auto"])


def has_compiler(device: torch.device) -> bool:
    """Returns whether the compiler that torch.compile calls is installed.

    Triton for a card, C++ for a CPU.
    """
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    if device.type != "cpu":
        return False
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


def compile_blocks(unet: UNet, cache_folder: Path | None = None, **options: Any) -> None:
    """Compiles the transformer blocks; call it after the adapter is attached.

    The first step of each shape takes longer by the time of compilation.

    Args:
        cache_folder: keeps compiled code.
        options: further arguments of torch.compile, such as its mode.
    """
    if cache_folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder.resolve()))
    import torch._dynamo as dynamo

    # Beyond these limits a block would run uncompiled: a training of many buckets has more shapes than the
    # default of 8.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _MAX_SHAPES)
    dynamo.config.accumulated_recompile_limit = max(
        dynamo.config.accumulated_recompile_limit, 4 * _MAX_SHAPES
    )
    dynamo.config.suppress_errors = True  # a block that can't be compiled runs as it is
    # Must come before the compilation. `patch_forwards` has given each attention and block a forward of its
    # own; dynamo caches compiled code by function, so that each of SDXL's 70 blocks would be compiled
    # separately. With the methods of diffusers' classes, all blocks share one compilation for each shape.
    restore_forwards(unet)
    unet.compile_repeated_blocks(dynamic=False, **options)
