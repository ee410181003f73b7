"""Masks: white where a picture is trained on, stored as one-channel PNGs of the picture's size."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.dataset.folder import mask_file
from trainer.dataset.masks import read_mask
from trainer.dataset.pictures import upright_size
from trainer.errors import DatasetError

MAX_BYTES = 24_000_000  # of a PNG from the page's mask brush
_WHITE = (255, 255)  # extrema of a channel that is white everywhere


def save_mask(picture: Path, data: bytes, name: str = "the mask") -> None:
    """Stores the weights of a drawn or uploaded mask beside its picture, as `read_mask` reads them.

    A completely white mask is the same as no mask and removes it. A mask of another size is resized, so that a
    browser doesn't have to draw at full size.

    Args:
        name: of an uploaded file, for messages.

    Raises:
        DatasetError: the data is not a mask of this picture.
    """
    mask, size = _read(picture, data, name)
    if mask.getextrema() == _WHITE:
        remove_mask(picture)
        return
    path = mask_file(picture) or picture.parent / "masks" / f"{picture.stem}.png"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, _png(mask, size))


def add_mask(picture: Path, data: bytes, name: str) -> None:
    """Stores an uploaded mask, unless the picture has another one, which may be drawn by hand.

    Args:
        name: of the uploaded file, for messages.

    Raises:
        DatasetError: the data is not a mask of this picture, or the picture has another mask.
    """
    if mask_file(picture) is not None:
        mask, size = _read(picture, data, name)
        if _png(mask, size) != mask_png(picture):
            raise DatasetError(
                f"{name} was not stored, because {picture.name} has another mask; remove that one to upload it"
            )
        return
    save_mask(picture, data, name)


def _read(picture: Path, data: bytes, name: str) -> tuple[Image.Image, tuple[int, int]]:
    """Returns the weights of a mask and the size of its picture. Raises DatasetError."""
    if len(data) > MAX_BYTES:
        raise DatasetError("that mask is too large; draw it again")
    size = upright_size(picture)
    with tempfile.TemporaryDirectory() as place:
        uploaded = Path(place) / "mask"
        uploaded.write_bytes(data)
        return read_mask(uploaded, size, name), size


def mask_png(picture: Path) -> bytes:
    """Returns the weights of a picture's mask as a grey PNG of the picture's size, whatever its file is like.

    Raises:
        DatasetError: there is no mask, or it can't be used.
    """
    path, size = mask_file(picture), upright_size(picture)
    if path is None:
        raise DatasetError("this picture has no mask")
    return _png(read_mask(path, size), size)


def _png(mask: Image.Image, size: tuple[int, int]) -> bytes:
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    png = io.BytesIO()
    mask.save(png, format="PNG", compress_level=4)
    return png.getvalue()


def remove_mask(picture: Path) -> None:
    """Removes a picture's mask, so that all of it is trained on."""
    path = mask_file(picture)
    if path:
        path.unlink(missing_ok=True)
