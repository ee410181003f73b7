"""Masks: the weight of each part of a picture in the loss, from a mask file or the picture's own opacity.

A mask file is read in the same way by the trainer, the command line and the page: white counts fully, black and
transparent areas do not count, grey and half-transparent ones count in part (luminance times opacity). A mask
with transparency and colours is a cut-out of the picture, whose opacity alone counts: its colours are those of
the subject and no weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from trainer.dataset.pictures import open_layers
from trainer.errors import DatasetError

_COLOURED = 16  # least difference of two channels of a visible pixel, in levels of 255
_VISIBLE = 128  # opacity of such a pixel


def read_mask(path: Path, size: tuple[int, int], name: str = "") -> Image.Image:
    """Returns the weights of a mask file, "L": 255 counts fully.

    Args:
        size: upright (width, height) of the picture; the mask may be smaller or larger, in the same shape.
        name: of the file in messages, if not its own.

    Raises:
        DatasetError: the file can't be read, has another shape, or is transparent or black everywhere although
            it has transparency, as a drawing in black on a transparent page is.
    """
    name = name or path.name
    colours, opacity = open_layers(path, name)
    if not _has_same_shape(colours.size, size):
        raise DatasetError(
            f"{name} has {colours.width} x {colours.height} pixels, another shape than its picture "
            f"({size[0]} x {size[1]}); save the mask in the picture's shape"
        )
    if opacity is None or opacity.getextrema() == (255, 255):
        return colours.convert("L")
    if _is_cut_out(colours, opacity):
        return opacity
    weights = ImageChops.multiply(colours.convert("L"), opacity)
    if weights.getextrema()[1] == 0:
        raise DatasetError(
            f"{name} is black or transparent everywhere, so nothing of its picture would be trained; "
            "paint white what the training should see"
        )
    return weights


def _is_cut_out(colours: Image.Image, opacity: Image.Image) -> bool:
    """Returns whether a mask with transparent areas shows colours in its visible ones."""
    channels = np.asarray(colours, dtype=np.int16)[np.asarray(opacity) >= _VISIBLE]
    return bool(len(channels) and (channels.max(axis=1) - channels.min(axis=1)).max() >= _COLOURED)


def _has_same_shape(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Returns whether the mask has the picture's size, or that size scaled and rounded to whole pixels."""
    small, large = (mask, picture) if max(mask) <= max(picture) else (picture, mask)
    scale = max(small) / max(large)
    return all(abs(side - full_side * scale) <= 1 for side, full_side in zip(small, large, strict=True))
