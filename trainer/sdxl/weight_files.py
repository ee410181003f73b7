"""The files that hold the weights of a base, and their tensors by the name of the module's parameter.

PyTorch is imported when a tensor is read, so that commands that only look for files start quickly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.errors import BaseError
from trainer.sdxl.ldm_names import ldm_source

if TYPE_CHECKING:
    import torch
    from torch import nn

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
        from trainer.sdxl.mmap_reader import MappedFile

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
        from trainer.sdxl.mmap_reader import MappedFile

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
