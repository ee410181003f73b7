"""Loading of one part of a base: built on the meta device, then filled tensor by tensor from the mapped file.

Each tensor is converted to its final precision when it is read, so at most one tensor exists twice at any
moment: loading takes little more memory than the loaded part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

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
    """A source of the weights of a base."""

    def tensors(self, part: str, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor in the file's precision) of every parameter and buffer of `model`.

        A tensor is valid until the next one is requested.

        Raises:
            BaseError: if a tensor is missing.
        """
        ...


@dataclass(frozen=True)
class FolderWeights:
    """A diffusers folder.

    `unet/diffusion_pytorch_model.safetensors` and so on; large parts are several files.
    """

    path: Path

    def tensors(self, part: str, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Weights.tensors`."""
        holder = {key: file for file in map(MappedFile, weight_files(self.path / part)) for key in file.keys}
        for name in model.state_dict():
            key = next((key for key in _known_names(name) if key in holder), None)
            if key is None:
                raise BaseError(f"{self.path.name} lacks {part}/{name}; copy the whole folder again")
            with holder[key].weight(key) as tensor:
                yield name, tensor


@dataclass(frozen=True)
class FileWeights:
    """A single file of the original layout; its VAE may be in a second file."""

    path: Path
    vae: Path | None

    def tensors(self, part: str, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Weights.tensors`."""
        path = self.vae if part == "vae" else self.path
        if path is None:
            raise BaseError(f"{self.path.name} contains no VAE; put sdxl_vae.safetensors beside it")
        file = MappedFile(path)
        for name, parameter in model.state_dict().items():
            source = ldm_source(part, name)
            key = source.key if source.key in file.keys else source.key.removeprefix("first_stage_model.")
            if key not in file.keys:
                raise BaseError(
                    f"{path.name} lacks {source.key}; it is damaged or not an SDXL checkpoint: "
                    "download it again"
                )
            with file.weight(key) as tensor:
                yield name, source.extract(tensor, parameter.shape)


def weight_files(folder: Path) -> list[Path]:
    """Returns the .safetensors files of one part.

    A single file, or those that its index lists; empty if there are none.
    """
    for stem in ("diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16", "model.fp16"):
        base, _, variant = stem.partition(".")
        whole = folder / f"{stem}.safetensors"
        index = folder / f"{base}.safetensors.index{'.' + variant if variant else ''}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / name for name in sorted(names)]
    return []


def _known_names(name: str) -> Iterator[str]:
    """Yields a weight's name in current and older files.

    transformers 5 omits `text_model.`; diffusers renamed the layers of the VAE's attention.
    """
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
