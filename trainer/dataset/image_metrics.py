"""Metrics of a picture for the checks: perceptual hash, energy of fine detail, transparency, plain bars,
corner marks.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.dataset.pictures import MAX_PIXELS, open_alpha, open_picture

VERSION = 1  # stored metrics of another version are computed again
BANDS = 10  # half octaves of spatial frequency, from half a cycle per pixel downwards
_MAX_WINDOW = 768  # px: detail is measured in a central window of at most this side
_THUMBNAIL = 32  # px: side of the grey thumbnail
_HASH_SIDE = 8  # frequencies in each direction
_GRID = 12  # cells in each direction, for corners
_CELL = 24  # px: side of a cell
_TOLERANCE = 8.0  # of 255: largest difference between pixels of one plain colour
_NOISE_DEVIATION = 4.0  # of 255: a picture with a smaller standard deviation counts as one colour
_JSON_KEYS = {"perceptual_hash": "look", "thumbnail": "tiny", "transparent_share": "clear"}


@dataclass(frozen=True, kw_only=True)
class ImageMetrics:
    """Metrics of one picture in upright orientation."""

    width: int
    height: int
    digest: str  # SHA-256 of the file
    perceptual_hash: int  # 64 bits (Zauner 2010); few bits differ between pictures that look alike
    thumbnail: str  # 32 x 32 grey pixels in hexadecimal
    detail: tuple[float, ...]  # log10 of the energy in each half octave, the finest first; () for one colour
    transparent_share: float  # of the area
    bars: tuple[int, int, int, int]  # px of plain bars at the left, top, right and bottom
    corners: tuple[
        bool, bool, bool, bool
    ]  # small isolated marks: top left, top right, bottom left, bottom right

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics as JSON values, under the keys of VERSION 1."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> ImageMetrics:
        """Reads the values of `to_json`. Raises TypeError or KeyError for anything else."""
        names = {key: name for name, key in _JSON_KEYS.items()}
        fields = {names.get(key, key): value for key, value in values.items()}
        return ImageMetrics(
            **{**fields, **{name: tuple(fields[name]) for name in ("detail", "bars", "corners")}}
        )


def measure(path: Path, *, most_pixels: int = MAX_PIXELS) -> ImageMetrics:
    """Computes the metrics of a picture. Raises DatasetError if it can't be read."""
    picture = open_picture(path, most_pixels=most_pixels)
    alpha = open_alpha(path)
    grey = picture.convert("L")
    bars = _bars(picture)
    inside = grey.crop((bars[0], bars[1], grey.width - bars[2], grey.height - bars[3]))
    thumbnail = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
    return ImageMetrics(
        width=picture.width,
        height=picture.height,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        perceptual_hash=_perceptual_hash(thumbnail),
        thumbnail=thumbnail.tobytes().hex(),
        detail=_detail(inside),
        transparent_share=_transparent_share(alpha),
        bars=bars,
        corners=_corners(inside),
    )


def _perceptual_hash(thumbnail: np.ndarray) -> int:
    """Compares the lowest 8 x 8 frequencies of the discrete cosine transform with their median, one bit for
    each.
    """
    transform = _dct_matrix()
    low = (transform @ thumbnail.astype(np.float64) @ transform.T)[:_HASH_SIDE, :_HASH_SIDE].ravel()
    bits = low > np.median(low[1:])  # without the first value, which is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _dct_matrix() -> np.ndarray:
    """DCT-II matrix of the lowest frequencies, shape (8, 32)."""
    row, column = np.arange(_HASH_SIDE)[:, None], np.arange(_THUMBNAIL)[None]
    return np.cos(np.pi * row * (2 * column + 1) / (2 * _THUMBNAIL))


def _detail(grey: Image.Image) -> tuple[float, ...]:
    """Returns log10 of power times squared frequency in each half octave.

    The power of natural pictures falls as 1 / f^2 (Field 1987), so that their values are all alike.
    """
    width, height = min(grey.width, _MAX_WINDOW), min(grey.height, _MAX_WINDOW)
    left, top = (grey.width - width) // 2, (grey.height - height) // 2
    values = np.asarray(grey.crop((left, top, left + width, top + height)), dtype=np.float32)
    if min(width, height) < 2 * _THUMBNAIL or values.std() < _NOISE_DEVIATION:
        return ()
    # The window function removes the edges of the crop, which would add energy at all frequencies.
    window = np.hanning(height).astype(np.float32)[:, None], np.hanning(width).astype(np.float32)
    values = (values - values.mean()) * window[0] * window[1]
    power = np.abs(np.fft.rfft2(values)) ** 2 / values.size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(min=1e-6)
    # Band -1 lies above half a cycle per pixel, in the corners of the spectrum.
    band = np.floor(-2 * np.log2(frequency / 0.5)).astype(np.int64)
    is_counted = (band >= 0) & (band < BANDS)
    sums = np.bincount(band[is_counted], weights=power[is_counted], minlength=BANDS)
    counts = np.bincount(band[is_counted], minlength=BANDS).clip(min=1)
    band_frequency = 0.5 / 2 ** (np.arange(BANDS) / 2 + 0.25)
    energies = sums / counts * band_frequency**2
    return tuple(round(float(value), 3) for value in np.log10(energies.clip(min=1e-9)))


def _transparent_share(alpha: Image.Image | None) -> float:
    if alpha is None:
        return 0.0
    counts = alpha.histogram()
    return round(sum(counts[:250]) / sum(counts), 4)  # 250 of 255 and more count as opaque


def _bars(picture: Image.Image) -> tuple[int, int, int, int]:
    """Returns the px of plain bars at the left, top, right and bottom, as in film stills and screenshots.

    Bars come in pairs of one colour at opposite sides and end at a straight edge. The white page around a
    drawing is no bar: where it ends, only a few pixels of the next row are inked.
    """
    rows = np.asarray(picture, dtype=np.int16)
    columns = rows.transpose(1, 0, 2)
    top, bottom = _bar(rows), _bar(rows[::-1])
    left, right = _bar(columns), _bar(columns[::-1])
    is_one_colour = bool(np.abs(rows[0, 0] - rows[-1, -1]).max() <= _TOLERANCE)
    if not (left and right and is_one_colour):
        left = right = 0
    if not (top and bottom and is_one_colour):
        top = bottom = 0
    return left, top, right, bottom


def _bar(rows: np.ndarray) -> int:
    """Returns the number of rows, from the first on, in the colour of the corner; 0 unless they end at a
    straight edge.

    Args:
        rows: pixels, shape (height, width, 3).
    """
    longest = len(rows) * 2 // 5
    differs = np.abs(rows[: longest + 4] - rows[0, 0]).max(axis=2) > _TOLERANCE
    inked_share = differs.mean(axis=1)
    length = int(np.argmax(inked_share > 0.02)) if (inked_share > 0.02).any() else longest + 1
    if not len(rows) * 0.02 <= length <= longest:
        return 0
    return length if inked_share[length : length + 4].max() >= 0.6 else 0


def _corners(grey: Image.Image) -> tuple[bool, bool, bool, bool]:
    """Returns for each corner whether it holds edges in calm surroundings: a signature, a date or a
    watermark.
    """
    small = grey.resize((_GRID * _CELL, _GRID * _CELL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32)
    edges = np.zeros_like(values)
    edges[:, 1:] = np.abs(np.diff(values, axis=1))
    edges[1:] = np.maximum(edges[1:], np.abs(np.diff(values, axis=0)))
    # Share of edge pixels in each cell.
    grid = (edges > 16).reshape(_GRID, _CELL, _GRID, _CELL).mean(axis=(1, 3))
    return (
        _has_isolated_mark(grid),
        _has_isolated_mark(grid[:, ::-1]),
        _has_isolated_mark(grid[::-1]),
        _has_isolated_mark(grid[::-1, ::-1]),
    )


def _has_isolated_mark(grid: np.ndarray) -> bool:
    """Returns whether the top left corner holds a mark of at most 3 rows and 5 columns.

    Starts at the busiest of the 2 x 3 cells in the corner and follows adjacent busy cells; a group that
    reaches further is part of the picture.
    """
    busy = grid > 0.02
    row, column = (int(index) for index in np.unravel_index(np.argmax(grid[:2, :3]), (2, 3)))
    if grid[row, column] < 0.06:
        return False
    group, queue = {(row, column)}, [(row, column)]
    while queue:
        row, column = queue.pop()
        adjacent = ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1))
        fresh = [
            cell
            for cell in adjacent
            if cell not in group and min(cell) >= 0 and max(cell) < _GRID and busy[cell]
        ]
        if any(cell[0] >= 3 or cell[1] >= 5 for cell in fresh):
            return False
        group.update(fresh)
        queue += fresh
    return True
