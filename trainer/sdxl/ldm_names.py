"""Names of the weights of diffusers and transformers modules in a checkpoint of the original (LDM) layout.

unet            down_blocks.1.resnets.0.conv1.weight
                model.diffusion_model.input_blocks.4.0.in_layers.2.weight
vae             encoder.mid_block.attentions.0.to_q
                first_stage_model.encoder.mid.attn_1.q, stored as a 1x1 convolution
text_encoder    encoder.layers.0.self_attn.q_proj
                conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj
text_encoder_2  encoder.layers.0.self_attn.q_proj
                a third of conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.headers.base_model import TEXT_1, TEXT_2, UNET, VAE
from trainer.sdxl.unet_names import sgm_path

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Source:
    """The tensor of a file that contains a weight, and the conversion of that tensor to the weight."""

    key: str
    third: int | None = None  # q, k or v of a fused projection: rows 0, 1 or 2 of three
    transposed: bool = False

    def extract(self, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Returns a view of the file's tensor that has the module's shape."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        if self.transposed:
            tensor = tensor.T
        # The original VAE's attention uses 1x1 convolutions where diffusers has linear layers.
        is_1x1 = tensor.dim() == 4 and tensor.shape[2:] == (1, 1)
        return tensor[:, :, 0, 0] if is_1x1 and len(shape) == 2 else tensor


def ldm_source(part: str, name: str) -> Source:
    """Returns the source of a parameter.

    Args:
        part: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        name: path of the parameter in the part's module.
    """
    module, _, leaf = name.rpartition(".")
    if part == "unet":
        return Source(f"{UNET}{sgm_path(module)}.{leaf}")
    if part == "vae":
        return Source(f"{VAE}{_vae_module(module)}.{leaf}")
    if part == "text_encoder":
        return Source(f"{TEXT_1}{name if name.startswith('text_model.') else f'text_model.{name}'}")
    return _open_clip(name.removeprefix("text_model."))


_VAE_PARTS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_BLOCK = re.compile(
    r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(resnets|downsamplers|upsamplers)\.(\d)\.(.+)"
)
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)")


def _vae_module(module: str) -> str:
    if match := _VAE_MIDDLE.fullmatch(module):
        side, kind, number, rest = match[1], match[2], int(match[3]), match[4]
        if kind == "attentions":
            return f"{side}.mid.attn_1.{_VAE_ATTENTION[rest]}"
        return f"{side}.mid.block_{number + 1}.{_VAE_PARTS.get(rest, rest)}"
    if match := _VAE_BLOCK.fullmatch(module):
        side, direction, block, kind, layer, rest = match.groups()
        # The original decoder numbers its four levels from the finest, diffusers from the coarsest.
        level = int(block) if direction == "down" else 3 - int(block)
        if kind == "resnets":
            return f"{side}.{direction}.{level}.block.{layer}.{_VAE_PARTS.get(rest, rest)}"
        return f"{side}.{direction}.{level}.{direction}sample.{rest}"
    side, _, rest = module.partition(".")
    return f"{side}.{_VAE_PARTS.get(rest, rest)}" if rest else module


_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def _open_clip(name: str) -> Source:
    """Returns the source in OpenCLIP's layout.

    Q, k and v are one matrix, the text projection is transposed.
    """
    if name == "text_projection.weight":
        return Source(f"{TEXT_2}text_projection", transposed=True)
    if name in _OPEN_CLIP:
        return Source(TEXT_2 + _OPEN_CLIP[name])
    match = _LAYER.fullmatch(name)
    assert match, name
    start, module, leaf = f"{TEXT_2}transformer.resblocks.{match[1]}.", match[2], match[3]
    if module in _OPEN_CLIP_LAYER:
        return Source(f"{start}{_OPEN_CLIP_LAYER[module]}.{leaf}")
    return Source(f"{start}attn.in_proj_{leaf}", third="qkv".index(module.removeprefix("self_attn.")[0]))
