"""Module paths of diffusers and transformers to the names that other tools know, and back.

unet            down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
                lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q       original (SGM) numbering
text_encoder    encoder.layers.0.self_attn.q_proj          transformers 5 leaves `text_model.` out of its paths;
                lora_te1_text_model_encoder_layers_0_self_attn_q_proj            every other tool expects it
"""

from __future__ import annotations

import re

PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.?(.*)")


def sgm_path(path: str) -> str:
    """The original checkpoint's name of a UNet module. SDXL has two layers in a block: three slots with its sampler."""
    if path in _TOP:
        return _TOP[path]
    if match := _MIDDLE.fullmatch(path):
        kind, number, rest = match[1], int(match[2]), match[3]
        slot = 1 if kind == "attentions" else 2 * number
        return _joined(f"middle_block.{slot}", _RESNET.get(rest, rest) if kind == "resnets" else rest)
    match = _BLOCK.fullmatch(path)
    if not match:
        raise ValueError(f"{path} is no module of an SDXL UNet")
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{3 * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.conv"  # after the attention; every up block but the last has one
    slot = 3 * block + layer + (1 if side == "down" else 0)
    inner = _RESNET.get(rest, rest) if kind == "resnets" else rest
    return _joined(f"{'input' if side == 'down' else 'output'}_blocks.{slot}.{0 if kind == 'resnets' else 1}", inner)


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def kohya_name(part: str, path: str) -> str:
    """`lora_unet_...`, `lora_te1_text_model_...` or `lora_te2_text_model_...`."""
    if part == "unet":
        path = sgm_path(path)
    elif not path.startswith("text_model."):
        path = f"text_model.{path}"
    return PREFIX[part] + path.replace(".", "_")


def accepted_names(part: str, path: str) -> list[str]:
    """Every spelling of a module that files in the wild use, ours first."""
    path = path if part == "unet" else path.removeprefix("text_model.")
    dotted = path if part == "unet" else f"text_model.{path}"
    names = [kohya_name(part, path), PREFIX[part] + dotted.replace(".", "_"), f"{part}.{dotted}"]
    if dotted != path:
        names += [f"{part}.{path}", PREFIX[part] + path.replace(".", "_")]
    # ComfyUI's extracted files
    return [*names, f"diffusion_model.{sgm_path(path)}" if part == "unet" else f"text_encoders.{_CLIP[part]}.transformer.{dotted}"]


def diffusers_name(part: str, path: str) -> str:
    """What `load_lora_weights` expects: `unet.<path>` and `text_encoder.text_model.<path>`."""
    return accepted_names(part, path)[2]
