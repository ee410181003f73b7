"""Bases of SDXL's layout with random weights: speed does not depend on training.

wide64   64/128/256 channels, heads of 64, 70 transformer blocks, narrow text encoders: a UNet of 94 M weights
sdxl     the configuration of SDXL, built on the device
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import BUNDLED
from trainer.atomic_files import replacing
from trainer.sdxl.base import ORIGINAL
from trainer.sdxl.weights import build

_TEXT_WIDTH = 64


def write_wide(folder: Path, width: int = 64) -> Path:
    """Returns the diffusers folder `wide<width>`, which is written if it does not exist.

    Its native size is 256 px, and its VAE is that of the bundled base.
    """
    target = folder / f"wide{width}"
    if (target / "model_index.json").exists():
        return target
    with replacing(target, sync=False) as temporary:
        temporary.mkdir(parents=True)
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel.from_config({**_facts("unet"), **wide_unet(width)})  # pyright: ignore
        unet.save_pretrained(temporary / "unet")
        for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
            facts = {
                **_facts(part),
                "hidden_size": _TEXT_WIDTH,
                "intermediate_size": 4 * _TEXT_WIDTH,
                "num_attention_heads": 1,
            }
            encoder: Any = kind(CLIPTextConfig.from_dict({**facts, "projection_dim": _TEXT_WIDTH}))
            encoder.save_pretrained(temporary / part)
        shutil.copytree(BUNDLED / "vae", temporary / "vae")
        for part in ("tokenizer", "tokenizer_2", "scheduler"):
            shutil.copytree(ORIGINAL / part, temporary / part)
        shutil.copy(ORIGINAL / "model_index.json", temporary)
    return target


def wide_unet(width: int) -> dict[str, Any]:
    """Changes to SDXL's configuration; attention heads stay 64 wide."""
    return {
        "sample_size": 32,
        "block_out_channels": [width, 2 * width, 4 * width],
        "attention_head_dim": [max(1, width * times // 64) for times in (1, 2, 4)],
        "cross_attention_dim": 2 * _TEXT_WIDTH,
        "projection_class_embeddings_input_dim": 6 * 256 + _TEXT_WIDTH,
    }


def _facts(part: str) -> dict[str, Any]:
    return json.loads((ORIGINAL / part / "config.json").read_text(encoding="utf-8"))


@torch.no_grad()
def random_part(part: str, configs: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Returns a frozen part with random weights, created on its device.

    Matrices have the deviation 0.02; gains are 1 and biases 0.
    """
    model = build(part, configs, dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in model.named_parameters():
        if tensor.dim() < 2:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            tensor.normal_(0, 0.02, generator=generator)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(
                name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False
            )
    return model.requires_grad_(False).eval()
