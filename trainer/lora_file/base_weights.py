"""Weights of a base on disk, a diffusers folder or a single file, read one tensor at a time.

Weights are addressed by part and module path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from trainer.errors import BaseError
from trainer.headers.scaled_fp8 import scale_key
from trainer.lora_file.sdxl_modules import Layout, Shape, sdxl
from trainer.sdxl.ldm_names import Source, ldm_source

if TYPE_CHECKING:
    import torch

PARTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Place:
    """The place of a weight on disk.

    Attributes:
        source: the tensor in the file, and the part of it that is the weight.
        shape: shape of the weight, which may be a part or the transpose of the tensor.
        handle: from `safetensors.safe_open`, which maps the file and reads single tensors.
        scale: the tensor that the weight is multiplied by, if it is stored in scaled float8.
    """

    file: Path
    source: Source
    shape: Shape
    handle: Any
    scale: str | None = None


@dataclass(frozen=True)
class PartWeights:
    """The `.weight` tensors of the modules of one part; paths are without `text_model.`."""

    places: Mapping[str, Place]

    def shape(self, path: str) -> Shape | None:
        """The shape of a module's weight, or None where the part has no such module."""
        return self.places[path].shape if path in self.places else None

    def tensor(self, path: str) -> torch.Tensor:
        """The weight of a module in the dtype of the file; in fp32 if it is stored in scaled float8."""
        import torch

        place = self.places[path]
        tensor = place.handle.get_tensor(place.source.key)
        if place.scale is not None:
            from trainer.sdxl.mmap_reader import rescaled

            tensor = rescaled(tensor, place.handle.get_tensor(place.scale))
        return place.source.extract(tensor, torch.Size(place.shape))


def base_weights(path: Path, framework: str = "pt") -> dict[str, PartWeights]:
    """Opens the three parts of a base that LoRAs change, without reading tensors. Raises BaseError.

    Args:
        framework: library of the tensors, as `safetensors.safe_open` names it; "np" for shapes alone, since "pt"
            imports PyTorch.
    """
    try:
        if path.is_file():
            return dict(_file_parts(path, framework))
        return {part: PartWeights(dict(_folder_places(path / part, framework))) for part in PARTS}
    except (OSError, SafetensorError) as error:
        raise BaseError(f"{path.name} can't be read ({error}); copy the base again") from None


def layout_of(path: Path) -> Layout:
    """The shapes of the weights of a base on disk. Raises BaseError."""
    parts = base_weights(path, "np")
    return Layout(
        path.name,
        {
            part: {where: place.shape for where, place in weights.places.items()}
            for part, weights in parts.items()
        },
    )


def _folder_places(folder: Path, framework: str) -> Iterator[tuple[str, Place]]:
    """(path, place) of the weights of one part of a diffusers folder."""
    from trainer.sdxl.weight_files import weight_files

    files = weight_files(folder)
    if not files:
        raise BaseError(f"{folder} holds no .safetensors; give a whole diffusers folder")
    for file in files:
        handle: Any = safe_open(file, framework=framework)
        keys = set(handle.keys())
        for key in sorted(keys):
            if key.endswith(".weight"):
                yield (
                    key.removesuffix(".weight").removeprefix("text_model."),
                    Place(file, Source(key), _shape(handle, key), handle, scale_key(key, keys)),
                )


def _file_parts(path: Path, framework: str) -> Iterator[tuple[str, PartWeights]]:
    """(part, weights) of a checkpoint in the original layout; a smaller base has some of SDXL's modules."""
    handle: Any = safe_open(path, framework=framework)
    keys = set(handle.keys())
    for part, shapes in sdxl().shapes.items():
        places = {}
        for where in shapes:
            source = ldm_source(part, f"{where}.weight")
            if source.key in keys:
                rows, *rest = _shape(handle, source.key)
                shape = (rows // 3 if source.third is not None else rows, *rest)
                scale = scale_key(source.key, keys)
                places[where] = Place(
                    path, source, shape[::-1] if source.transposed else shape, handle, scale
                )
        if not places:
            raise BaseError(f"{path.name} holds no {part} of SDXL; give a whole checkpoint")
        yield part, PartWeights(places)


def _shape(handle: Any, key: str) -> Shape:
    return tuple(handle.get_slice(key).get_shape())
