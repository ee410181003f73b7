"""What the dataset doctor measures of one picture: its look, its finest detail, bars, transparency and corners. numpy and Pillow only."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.dataset.pictures import MAX_PIXELS, open_alpha, open_picture

VERSION = 1  # of the measures below; kept ones of another version are measured anew
BANDS = 10  # half octaves of spatial frequency, from half a cycle per pixel downwards
_LARGEST = 768  # px: detail is looked at in a window of this side
_TINY = 32  # px: side of the grey copy that looks are compared by
_CELLS = 12  # the picture as a grid of so many cells a side, for corners
_LEVELS = 8.0  # of 255: what two neighbouring pixels of one plain colour may differ by


@dataclass(frozen=True, kw_only=True)
class ImageMetrics:
    """Of one picture, upright."""

    width: int
    height: int
    digest: str  # SHA-256 of the file
    look: int  # perceptual hash, 64 bits (Zauner 2010): few bits differ between pictures that look alike
    tiny: str  # 32 x 32 greys, hexadecimal
    detail: tuple[
        float, ...
    ]  # log10 of the energy in each half octave, the finest first; () for a picture of one colour
    clear: float  # share of its area that one can see through
    bars: tuple[int, int, int, int]  # px of plain bars at the left, top, right and bottom
    corners: tuple[
        bool, bool, bool, bool
    ]  # whether something small stands apart: top left, top right, bottom left, bottom right

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(facts: dict[str, Any]) -> ImageMetrics:
        """Raises TypeError or KeyError for what are no measures."""
        return ImageMetrics(
            **{**facts, **{name: tuple(facts[name]) for name in ("detail", "bars", "corners")}}
        )


def measure(path: Path, *, most_pixels: int = MAX_PIXELS) -> ImageMetrics:
    """Looks at one picture. Raises DatasetError when it can't be read."""
    picture = open_picture(path, most_pixels=most_pixels)
    alpha = open_alpha(path)
    grey = picture.convert("L")
    bars = _bars(picture)
    inside = grey.crop((bars[0], bars[1], grey.width - bars[2], grey.height - bars[3]))
    tiny = np.asarray(grey.resize((_TINY, _TINY), Image.Resampling.BOX))
    return ImageMetrics(
        width=picture.width,
        height=picture.height,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        look=_look(tiny),
        tiny=tiny.tobytes().hex(),
        detail=_detail(inside),
        clear=_clear(alpha),
        bars=bars,
        corners=_corners(inside),
    )


def _look(tiny: np.ndarray) -> int:
    """The signs of the lowest 8 x 8 frequencies of the discrete cosine transform against their median."""
    transform = _cosines()
    low = (transform @ tiny.astype(np.float64) @ transform.T)[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> np.ndarray:
    """DCT-II matrix (8, 32)."""
    row, column = np.arange(8)[:, None], np.arange(_TINY)[None]
    return np.cos(np.pi * row * (2 * column + 1) / (2 * _TINY))


def _detail(grey: Image.Image) -> tuple[float, ...]:
    """Energy times squared frequency in half octaves: flat for natural pictures, whose power falls as 1 / f^2 (Field 1987)."""
    width, height = min(grey.width, _LARGEST), min(grey.height, _LARGEST)
    left, top = (grey.width - width) // 2, (grey.height - height) // 2
    values = np.asarray(grey.crop((left, top, left + width, top + height)), dtype=np.float32)
    if min(width, height) < 2 * _TINY or values.std() < 4:
        return ()
    values = (
        (values - values.mean())
        * np.hanning(height).astype(np.float32)[:, None]
        * np.hanning(width).astype(np.float32)
    )
    power = np.abs(np.fft.rfft2(values)) ** 2 / values.size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(min=1e-6)
    band = np.floor(-2 * np.log2(frequency / 0.5)).astype(
        np.int64
    )  # -1: beyond half a cycle, in the corners of the spectrum
    kept = (band >= 0) & (band < BANDS)
    sums = np.bincount(band[kept], weights=power[kept], minlength=BANDS)
    means = (
        sums
        / np.bincount(band[kept], minlength=BANDS).clip(min=1)
        * (0.5 / 2 ** (np.arange(BANDS) / 2 + 0.25)) ** 2
    )
    return tuple(round(float(value), 3) for value in np.log10(means.clip(min=1e-9)))


def _clear(alpha: Image.Image | None) -> float:
    if alpha is None:
        return 0.0
    counts = alpha.histogram()
    return round(sum(counts[:250]) / sum(counts), 4)


def _bars(picture: Image.Image) -> tuple[int, int, int, int]:
    """Plain stripes along opposite sides that end at a straight edge, as those of film stills and screenshots do.

    A white page around a drawing is none: where it ends, only a few pixels of the next row are inked.
    """
    values = np.asarray(picture, dtype=np.int16)
    top, bottom = _bar(values), _bar(values[::-1])
    across = values.transpose(1, 0, 2)
    left, right = _bar(across), _bar(across[::-1])
    vertical = (left, right) if left and right and _alike(values[0, 0], values[-1, -1]) else (0, 0)
    horizontal = (top, bottom) if top and bottom and _alike(values[0, 0], values[-1, -1]) else (0, 0)
    return vertical[0], horizontal[0], vertical[1], horizontal[1]


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= _LEVELS)


def _bar(rows: np.ndarray) -> int:
    """Rows from the first on that have the colour of the corner, when they end at a straight edge; else 0."""
    most = len(rows) * 2 // 5
    differ = np.abs(rows[: most + 4] - rows[0, 0]).max(axis=2) > _LEVELS
    inked = differ.mean(axis=1)
    plain = int(np.argmax(inked > 0.02)) if (inked > 0.02).any() else most + 1
    if not len(rows) * 0.02 <= plain <= most:
        return 0
    return plain if inked[plain : plain + 4].max() >= 0.6 else 0


def _corners(grey: Image.Image) -> tuple[bool, bool, bool, bool]:
    """Whether each corner holds edges while what lies around it is calm: a signature, a date, a watermark."""
    small = grey.resize((_CELLS * 24, _CELLS * 24), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32)
    edges = np.zeros_like(values)
    edges[:, 1:] = np.abs(np.diff(values, axis=1))
    edges[1:] = np.maximum(edges[1:], np.abs(np.diff(values, axis=0)))
    grid = (edges > 16).reshape(_CELLS, 24, _CELLS, 24).mean(axis=(1, 3))  # share of edge pixels in each cell
    return (
        _stands_apart(grid),
        _stands_apart(grid[:, ::-1]),
        _stands_apart(grid[::-1]),
        _stands_apart(grid[::-1, ::-1]),
    )


def _stands_apart(grid: np.ndarray) -> bool:
    """Whether the busiest cell at the first corner belongs to a group of cells that reaches no further than 3 rows and 5 columns."""
    busy = grid > 0.02
    row, column = (int(at) for at in np.unravel_index(np.argmax(grid[:2, :3]), (2, 3)))
    if grid[row, column] < 0.06:
        return False
    group, edge = {(row, column)}, [(row, column)]
    while edge:
        row, column = edge.pop()
        beside = ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1))
        fresh = [at for at in beside if at not in group and min(at) >= 0 and max(at) < _CELLS and busy[at]]
        if any(at[0] >= 3 or at[1] >= 5 for at in fresh):
            return False
        group.update(fresh)
        edge += fresh
    return True
