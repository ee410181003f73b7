"""The weights of a base on disk, one tensor at a time, by part and module path: of a diffusers folder, or of a single file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trainer.errors import BaseError
from trainer.lora_file.sdxl_modules import Layout, Shape, sdxl
from trainer.sdxl.ldm_names import Source, ldm_source

PARTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Place:
    """Where a weight lies: its shape, an open file, and what of which tensor there."""

    file: Path
    source: Source
    shape: Shape
    handle: Any  # of safetensors' safe_open, which maps the file and reads a tensor when asked for


@dataclass(frozen=True)
class PartWeights:
    """The `.weight` of every module of one part; paths without `text_model.`."""

    places: Mapping[str, Place]

    def shape(self, path: str) -> Shape | None:
        return self.places[path].shape if path in self.places else None

    def tensor(self, path: str) -> torch.Tensor:
        """In the dtype of the file."""
        place = self.places[path]
        return place.source.extract(place.handle.get_tensor(place.source.key), torch.Size(place.shape))


def base_weights(path: Path) -> dict[str, PartWeights]:
    """`unet`, `text_encoder` and `text_encoder_2` of a base, opened but not read. Raises BaseError."""
    try:
        if path.is_file():
            return dict(_of_file(path))
        return {part: PartWeights(dict(_of_folder(path / part))) for part in PARTS}
    except (OSError, SafetensorError) as error:
        raise BaseError(f"{path.name} can't be read ({error}); copy the base again") from None


def layout_of(path: Path) -> Layout:
    """The shapes of a base on disk. Raises BaseError."""
    parts = base_weights(path)
    return Layout(
        path.name,
        {
            part: {where: place.shape for where, place in found.places.items()}
            for part, found in parts.items()
        },
    )


def _of_folder(folder: Path) -> Iterator[tuple[str, Place]]:
    from trainer.sdxl.weights import weight_files  # with diffusers behind it

    files = weight_files(folder)
    if not files:
        raise BaseError(f"{folder} holds no .safetensors; give a whole diffusers folder")
    for file in files:
        handle: Any = safe_open(file, framework="pt")
        for key in handle.keys():  # noqa: SIM118
            if key.endswith(".weight"):
                yield (
                    key.removesuffix(".weight").removeprefix("text_model."),
                    Place(file, Source(key), _shape(handle, key), handle),
                )


def _of_file(path: Path) -> Iterator[tuple[str, PartWeights]]:
    """A checkpoint of the original layout; one of a smaller base has some of SDXL's modules."""
    handle: Any = safe_open(path, framework="pt")
    there = set(handle.keys())
    for part, shapes in sdxl().shapes.items():
        places = {}
        for where in shapes:
            source = ldm_source(part, f"{where}.weight")
            if source.key in there:
                rows, *rest = _shape(handle, source.key)
                shape = (rows // 3 if source.third is not None else rows, *rest)
                places[where] = Place(path, source, shape[::-1] if source.transposed else shape, handle)
        if not places:
            raise BaseError(f"{path.name} holds no {part} of SDXL; give a whole checkpoint")
        yield part, PartWeights(places)


def _shape(handle: Any, key: str) -> Shape:
    return tuple(handle.get_slice(key).get_shape())
