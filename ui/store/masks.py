"""Masks: white where a picture is trained on, stored as one-channel PNGs of the picture's size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.dataset.augmentations import mask_file
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError

MAX_BYTES = 24_000_000  # of a PNG from the page's mask brush
_WRONG_SHAPE = "a mask must be a grey PNG of the picture's shape; draw it again"
_WHITE = (255, 255)  # extrema of a channel that is white everywhere


def save_mask(picture: Path, data: bytes) -> None:
    """Stores a drawn mask beside its picture. A completely white mask is the same as no mask and removes it.

    A smaller mask of the same shape is enlarged, so that a browser doesn't have to draw at full size.

    Raises:
        DatasetError: the data is not a mask of this picture.
    """
    if len(data) > MAX_BYTES:
        raise DatasetError("that mask is too large; draw it again")
    size = open_picture(picture).size
    mask = _grey_mask(data, size)
    if mask.getextrema() == _WHITE:
        remove_mask(picture)
        return
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    path = mask_file(picture) or picture.parent / "masks" / f"{picture.stem}.png"
    png = io.BytesIO()
    mask.save(png, format="PNG", compress_level=4)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, png.getvalue())


def remove_mask(picture: Path) -> None:
    """Removes a picture's mask, so that all of it is trained on."""
    path = mask_file(picture)
    if path:
        path.unlink(missing_ok=True)


def _grey_mask(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Decodes a PNG and returns its grey channel.

    Raises:
        DatasetError: it has another shape, colours or transparent pixels, or can't be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns about decompression bombs of some sizes
            with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
                if not _has_same_shape(opened.size, size):
                    raise DatasetError(_WRONG_SHAPE)
                mask = opened.convert("L" if opened.mode in ("L", "1") else "RGBA")
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of exceptions on damaged files
        raise DatasetError(_WRONG_SHAPE) from error
    if mask.mode == "L":
        return mask
    red, green, blue, alpha = mask.split()
    is_grey = red.tobytes() == green.tobytes() == blue.tobytes()
    if not is_grey or alpha.getextrema() != _WHITE:
        raise DatasetError(_WRONG_SHAPE)
    return red


def _has_same_shape(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """True if the mask has the picture's size, or the size of the picture scaled down and rounded to whole pixels."""
    if min(mask) < 1 or mask[0] > picture[0] or mask[1] > picture[1]:
        return False
    scale = max(mask) / max(picture)
    return all(abs(side - full_side * scale) <= 1 for side, full_side in zip(mask, picture, strict=True))
