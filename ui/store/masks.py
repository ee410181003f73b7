"""Masks: where a picture counts, white for wholly. Kept as one-channel PNGs of the picture's own size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.dataset.augmentations import mask_file
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError

MAX_BYTES = 24_000_000  # of a PNG that a browser draws
_SHAPE = "a mask must be a grey PNG of the picture's shape; draw it again"


def save_mask(picture: Path, data: bytes) -> None:
    """Keeps a drawn mask beside its picture; a wholly white one is none. Raises DatasetError for what is no mask of this picture.

    A smaller one of the same shape is enlarged, so that a browser need not draw at full size.
    """
    if len(data) > MAX_BYTES:
        raise DatasetError("that mask is too large; draw it anew")
    size = open_picture(picture).size
    mask = _grey(data, size)
    if mask.getextrema() == (255, 255):
        remove_mask(picture)
        return
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    kept = mask_file(picture) or picture.parent / "masks" / f"{picture.stem}.png"
    written = io.BytesIO()
    mask.save(written, format="PNG", compress_level=4)
    kept.parent.mkdir(exist_ok=True)
    write_atomically(kept, written.getvalue())


def remove_mask(picture: Path) -> None:
    """The whole picture counts again."""
    found = mask_file(picture)
    if found:
        found.unlink(missing_ok=True)


def _grey(data: bytes, size: tuple[int, int]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
                if not _same_shape(opened.size, size):
                    raise DatasetError(_SHAPE)
                mask = opened.convert("RGBA") if opened.mode not in ("L", "1") else opened.convert("L")
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DatasetError(_SHAPE) from error
    if mask.mode == "L":
        return mask
    red, green, blue, alpha = mask.split()
    if (
        red.tobytes() != green.tobytes()
        or red.tobytes() != blue.tobytes()
        or alpha.getextrema() != (255, 255)
    ):
        raise DatasetError(_SHAPE)
    return red


def _same_shape(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Equal, or the picture made smaller and rounded to whole pixels."""
    if min(mask) < 1 or mask[0] > picture[0] or mask[1] > picture[1]:
        return False
    scale = max(mask) / max(picture)
    return all(abs(side - whole * scale) <= 1 for side, whole in zip(mask, picture, strict=True))
