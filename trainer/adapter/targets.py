"""Which layers are adapted."""

from __future__ import annotations

import re

from torch import nn

from trainer.adapter.lora import Size
from trainer.config import TrainConfig

_UNET_ATTENTION = re.compile(r".*\.attn[12]\.to_(q|k|v|out\.0)")
_UNET_MORE = re.compile(r".*\.ff\.net\.(0\.proj|2)|.*\.attentions\.\d+\.proj_(in|out)")
_TEXT_ATTENTION = re.compile(r".*\.self_attn\.(q|k|v|out)_proj")


def linear_paths(part: str, model: nn.Module, *, feed_forward: bool = False) -> list[str]:
    """Module paths of the layers to adapt in `unet`, `text_encoder` or `text_encoder_2`."""
    patterns = [_UNET_ATTENTION, *([_UNET_MORE] if feed_forward else [])] if part == "unet" else [_TEXT_ATTENTION]
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [path for path in linears if any(pattern.fullmatch(path) for pattern in patterns)]


def part_sizes(config: TrainConfig) -> dict[str, Size]:
    """Rank and alpha of each part that trains."""
    sizes = {"unet": Size(rank=config.rank, alpha=config.alpha)}
    if config.train_text_encoder_1:
        sizes["text_encoder"] = Size(rank=config.text_encoder_1_rank, alpha=config.text_encoder_1_alpha)
    if config.train_text_encoder_2:
        sizes["text_encoder_2"] = Size(rank=config.text_encoder_2_rank, alpha=config.text_encoder_2_alpha)
    return sizes


def part_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rate of each part."""
    return {
        "unet": config.learning_rate,
        "text_encoder": config.text_encoder_1_learning_rate,
        "text_encoder_2": config.text_encoder_2_learning_rate,
    }
