"""Loading of one part of a base: built on the meta device, then filled tensor by tensor from the mapped file.

Each tensor is converted to its final precision when it is read, so at most one tensor exists twice at any
moment: loading takes little more memory than the loaded part.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer.errors import BaseError
from trainer.sdxl.quantised import QuantisedLinear, quantisable_paths
from trainer.sdxl.weight_files import Weights


def build(part: str, config: Path, dtype: torch.dtype = torch.float32, quantised: str = "none") -> Any:
    """Returns the module of a part on the meta device: shapes without memory.

    Args:
        part: one of PARTS.
        config: folder of the base's configuration.
        quantised: precision of the UNet's linear layers, one of `config.QUANTISED`.
    """
    settings = json.loads((config / part / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = nn.Module.to(_BUILDERS[part](settings), dtype)
        for path in quantisable_paths(model) if quantised != "none" else ():
            layer: Any = model.get_submodule(path)
            model.set_submodule(
                path, QuantisedLinear(layer.weight, kind=quantised, dtype=dtype, bias=layer.bias)
            )
    return model


def _unet(settings: dict[str, Any]) -> nn.Module:
    return cast(nn.Module, UNet2DConditionModel.from_config(settings))


def _vae(settings: dict[str, Any]) -> nn.Module:
    return cast(nn.Module, AutoencoderKL.from_config(settings))


_BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": lambda settings: CLIPTextModel(CLIPTextConfig.from_dict(settings)),
    "text_encoder_2": lambda settings: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(settings)),
}


def load(
    part: str,
    config: Path,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    quantised: str = "none",
) -> Any:
    """Loads a part, frozen and in eval mode.

    Args:
        part: one of PARTS.
        config: folder of the base's configuration.
        quantised: precision of the linear layers' weights: none (that of `dtype`), int8, fp8 or nf4.

    Raises:
        BaseError: if a weight is missing or has another shape.
    """
    model = build(part, config)
    expected = model.state_dict()
    filled: dict[str, torch.Tensor] = {}
    packed = set(quantisable_paths(model)) if quantised != "none" else set()
    layers: dict[str, QuantisedLinear] = {}
    for name, tensor in weights.tensors(part, model):
        if tensor.shape != expected[name].shape:
            raise BaseError(
                f"{part}/{name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}: "
                "the file is not of this architecture; choose another base model"
            )
        path, _, role = name.rpartition(".")
        if path in packed and role == "weight":
            layers[path] = QuantisedLinear(tensor.to(device), kind=quantised, dtype=dtype)
        else:
            filled[name] = tensor.to(device, dtype, copy=True).contiguous()
    for path, layer in layers.items():
        if f"{path}.bias" in expected:
            layer.bias = nn.Parameter(filled[f"{path}.bias"])
        model.set_submodule(path, layer)
    model.load_state_dict(filled, assign=True)
    _fill_buffers(model, device)
    return model.requires_grad_(False).eval()


def _fill_buffers(model: nn.Module, device: torch.device) -> None:
    """Fills the buffers that are not in the files: CLIP's position numbers."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                assert name == "position_ids", name
                module.register_buffer(
                    name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False
                )
