"""Module paths of diffusers' UNet to the block numbering of Stability's original (SGM) checkpoint."""

from __future__ import annotations

import re

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)")


_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.?(.*)")


def sgm_path(path: str) -> str:
    """Returns the original checkpoint's name of a UNet module.

    SDXL has two layers in each block, so a block takes three slots of the original numbering: its layers and
    its sampler.

    Raises:
        ValueError: if the path is not of an SDXL UNet.
    """
    if path in _TOP:
        return _TOP[path]
    if match := _MIDDLE.fullmatch(path):
        kind, number, rest = match[1], int(match[2]), match[3]
        slot = 1 if kind == "attentions" else 2 * number
        return _joined(f"middle_block.{slot}", _RESNET.get(rest, rest) if kind == "resnets" else rest)
    match = _BLOCK.fullmatch(path)
    if not match:
        raise ValueError(f"{path} is not a module of an SDXL UNet")
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{3 * (block + 1)}.0.op"
    if kind == "upsamplers":
        # After the attention; all up blocks but the last have an upsampler.
        return f"output_blocks.{3 * block + 2}.2.conv"
    slot = 3 * block + layer + (1 if side == "down" else 0)
    inner = _RESNET.get(rest, rest) if kind == "resnets" else rest
    return _joined(
        f"{'input' if side == 'down' else 'output'}_blocks.{slot}.{0 if kind == 'resnets' else 1}", inner
    )


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
