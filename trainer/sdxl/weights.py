"""A part of a base, built without memory and filled tensor by tensor from the mapped file, in the precision it will have.

At any moment at most one tensor exists twice: loading takes little more than what is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer.errors import BaseError
from trainer.sdxl.ldm_names import ldm_source
from trainer.sdxl.mmap_reader import MappedFile
from trainer.sdxl.quantised import QuantisedLinear, quantisable_paths

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


class Weights(Protocol):
    """Where the weights of a base are."""

    def tensors(self, part: str, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor as the file has it) of every parameter and buffer of `model`. Raises BaseError.

        A tensor is valid until the next one is asked for.
        """
        ...


@dataclass(frozen=True)
class FolderWeights:
    """`unet/diffusion_pytorch_model.safetensors` and so on; large ones in several files with an index."""

    path: Path

    def tensors(self, part: str, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        holder = {key: file for file in map(MappedFile, weight_files(self.path / part)) for key in file.keys}
        for name in model.state_dict():
            key = next((spelling for spelling in _spellings(name) if spelling in holder), None)
            if key is None:
                raise BaseError(f"{self.path.name} lacks {part}/{name}; copy the whole folder again")
            with holder[key].tensor(key) as tensor:
                yield name, tensor


@dataclass(frozen=True)
class FileWeights:
    """A checkpoint of the original layout; its VAE may lie in a file of its own."""

    path: Path
    vae: Path | None

    def tensors(self, part: str, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        path = self.vae if part == "vae" else self.path
        if path is None:
            raise BaseError(f"{self.path.name} holds no VAE; put sdxl_vae.safetensors beside it")
        file = MappedFile(path)
        for name, parameter in model.state_dict().items():
            source = ldm_source(part, name)
            key = source.key if source.key in file.keys else source.key.removeprefix("first_stage_model.")
            if key not in file.keys:
                raise BaseError(
                    f"{path.name} lacks {source.key}; it is damaged or of another kind: download it again"
                )
            with file.tensor(key) as tensor:
                yield name, source.made(tensor, parameter.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of one part: a single file, or those its index names. Empty when there are none."""
    for stem in ("diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16", "model.fp16"):
        base, _, variant = stem.partition(".")
        whole = folder / f"{stem}.safetensors"
        index = folder / f"{base}.safetensors.index{'.' + variant if variant else ''}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / name for name in sorted(listed)]
    return []


def _spellings(name: str) -> Iterator[str]:
    """A weight's name here and in older files: transformers 5 leaves `text_model.` out, diffusers renamed the VAE's attention."""
    yield name
    yield f"text_model.{name}"
    for new, old in (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ):
        if new in name:
            yield name.replace(new, old)


def build(part: str, config: Path, dtype: torch.dtype = torch.float32, quantised: str = "none") -> Any:
    """The module of a part on the meta device: shapes without memory."""
    facts = json.loads((config / part / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = nn.Module.to(_BUILDERS[part](facts), dtype)
        for path in quantisable_paths(model) if quantised != "none" else ():
            layer: Any = model.get_submodule(path)
            model.set_submodule(
                path, QuantisedLinear(layer.weight, kind=quantised, dtype=dtype, bias=layer.bias)
            )
    return model


def _unet(facts: dict[str, Any]) -> nn.Module:
    return UNet2DConditionModel.from_config(facts)  # pyright: ignore


def _vae(facts: dict[str, Any]) -> nn.Module:
    return AutoencoderKL.from_config(facts)  # pyright: ignore


_BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": lambda facts: CLIPTextModel(CLIPTextConfig.from_dict(facts)),
    "text_encoder_2": lambda facts: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(facts)),
}


def load(
    part: str,
    config: Path,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    quantised: str = "none",
) -> Any:
    """A part with its weights, frozen, in eval mode. Raises BaseError when one is missing or of another shape.

    Args:
        quantised: how the weights of linear layers are kept: none (as they are), int8, fp8 or nf4.
    """
    model = build(part, config)
    expected = model.state_dict()
    filled: dict[str, torch.Tensor] = {}
    packed = set(quantisable_paths(model)) if quantised != "none" else set()
    layers: dict[str, QuantisedLinear] = {}
    for name, tensor in weights.tensors(part, model):
        if tensor.shape != expected[name].shape:
            raise BaseError(
                f"{part}/{name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}: the file is of another kind"
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
    """Buffers that no file holds: CLIP's position numbers."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                assert name == "position_ids", name
                module.register_buffer(
                    name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False
                )
