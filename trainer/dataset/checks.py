"""Checks of a picture set before training: findings such as duplicates, small or blurred pictures, and
advice.

Findings are computed from stored metrics (trainer/dataset/image_metrics.py) only, so that those for another
base model or preset cost nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.dataset.buckets import Placement
from trainer.dataset.image_metrics import BANDS, ImageMetrics

RECOMMENDED_PICTURES = {"style": 10, "character": 8, "concept": 5}  # recommended, by preset
MAX_ENLARGEMENT = 1.15  # a picture that is resized by more than this to fill its bucket is too small
MAX_CROPPED_SHARE = 0.25  # of a picture's area
_MIN_TRANSPARENT_SHARE = 0.005
_MAX_HASH_DISTANCE, _MIN_CORRELATION = (
    10,
    0.8,
)  # of pictures that look alike: bits of 64, and of the thumbnails
# The limits of detail were set by trial on photographs, scans and drawings, enlarged and blurred on purpose.
_MIN_BAND_ENERGY = -1.25  # log10, relative to the coarse bands: a band below this holds no detail
_STEEP_FALL = 2.2  # log10 between the coarsest band and the middle ones: above, only large shapes are left
_BLURRED_BANDS = (
    4  # half octaves without detail, more than any camera or enlargement to twice the size causes
)

# English sentences by kind, for the terminal and the page; ui/text/<language>/artwork.toml translates them
# (`found_*`). The order is that of the findings: first those on the whole set, then by how much a picture
# harms the training.
SENTENCES = {
    "few": "{count} pictures are few for a {preset}. Add more: {fewest} or more give better results.",
    "copy": "is the same file as {other}. Remove one of them, or the picture counts double.",
    "alike": (
        "looks nearly the same as {other}. Keep the better one, or keep both to count the picture double."
    ),
    "small": (
        "has {width} × {height} pixels and would be upscaled {times} times. "
        "Use the original or a larger scan."
    ),
    "enlarged": "looks upscaled: its detail is that of about {width} × {height} pixels. Use the original.",
    "blurred": "looks blurry. Use a sharper version or remove it.",
    "see_through": (
        "is transparent in {percent}% of its area, which is filled with white. "
        "Put it on the background that you want."
    ),
    "bars": "has plain borders, which the LoRA would learn. Crop them off.",
    "corner": (
        "may have a signature or watermark at the {corner}, as other pictures do. Mask it or crop it off."
    ),
    "cropped": (
        "loses {percent}% of its area in the crop. "
        "Move the crop to the important part or crop the picture yourself."
    ),
}
KINDS = tuple(SENTENCES)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Finding:
    """One problem of a picture or of the whole set."""

    kind: str  # of KINDS
    picture: str = ""  # name of the picture; "" for the whole set
    values: dict[str, Any] = field(default_factory=dict)  # for the blanks of the sentence

    @property
    def sentence(self) -> str:
        """The finding in English; the picture's name is its subject."""
        return SENTENCES[self.kind].format(**self.values)


def findings(
    metrics: Mapping[str, ImageMetrics], placements: Mapping[str, Placement] | None = None, preset: str = ""
) -> list[Finding]:
    """Returns all findings on a set, ordered by kind and then by name.

    Args:
        metrics: by picture name.
        placements: by picture name; pictures without a placement are not checked for size and crop.
        preset: "style", "character" or "concept"; "" does not check the number of pictures.
    """
    placements = placements or {}
    found: list[Finding] = []
    if preset in RECOMMENDED_PICTURES and len(metrics) < RECOMMENDED_PICTURES[preset]:
        values = {"count": len(metrics), "preset": preset, "fewest": RECOMMENDED_PICTURES[preset]}
        found.append(Finding("few", values=values))
    found += _duplicates(metrics)
    corners = _marked_corners(metrics)
    for name, one in metrics.items():
        found += _check_picture(name, one)
        if name in placements:
            found += _check_placement(name, one, placements[name])
        found += [
            Finding("corner", name, {"corner": CORNERS[corner]}) for corner in corners if one.corners[corner]
        ]
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), finding.picture))


def missing_octaves(detail: tuple[float, ...]) -> tuple[float, bool]:
    """Returns (octaves of the finest detail that a picture lacks, whether it is blurred rather than
    enlarged).

    An enlarged picture has no energy above the former Nyquist frequency, and natural energy below it. In a
    blurred picture the energy falls steadily from coarse to fine.

    Args:
        detail: energies of the half octaves, from ImageMetrics; () for a picture of one colour.
    """
    if len(detail) != BANDS:
        return 0.0, False
    is_steep = detail[-1] - detail[4] > _STEEP_FALL
    level = detail[-1] if is_steep else statistics.median(detail[4:8])
    first = next((band for band, energy in enumerate(detail) if energy - level >= _MIN_BAND_ENERGY), BANDS)
    return (first + 0.5) / 2 if first else 0.0, is_steep or first >= _BLURRED_BANDS


def _check_picture(name: str, metrics: ImageMetrics) -> list[Finding]:
    found = []
    if metrics.transparent_share >= _MIN_TRANSPARENT_SHARE:
        percent = max(1, round(100 * metrics.transparent_share))
        found.append(Finding("see_through", name, {"percent": percent}))
    if any(metrics.bars):
        found.append(Finding("bars", name))
    return found


def _check_placement(name: str, metrics: ImageMetrics, placement: Placement) -> list[Finding]:
    found = []
    width, height = metrics.width, metrics.height
    enlargement = placement.resized[0] / width
    if enlargement > MAX_ENLARGEMENT:
        values = {"width": width, "height": height, "times": f"{enlargement:.1f}"}
        found.append(Finding("small", name, values))
    octaves, is_blurred = missing_octaves(metrics.detail)
    real_width, real_height = width / 2**octaves, height / 2**octaves
    # Missing detail is harmless where the training reduces the picture anyway.
    is_reduced_enough = real_width * real_height >= placement.resized[0] * placement.resized[1] / 2
    if octaves and not is_reduced_enough and enlargement <= MAX_ENLARGEMENT:
        if is_blurred:
            found.append(Finding("blurred", name))
        else:
            values = {"width": _two_digits(real_width), "height": _two_digits(real_height)}
            found.append(Finding("enlarged", name, values))
    if placement.cropped_share > MAX_CROPPED_SHARE:
        found.append(Finding("cropped", name, {"percent": round(100 * placement.cropped_share)}))
    return found


def _two_digits(pixels: float) -> int:
    """Rounds to two significant digits, the precision of the estimate."""
    step = 10 ** max(0, math.floor(math.log10(max(pixels, 1))) - 1)
    return round(pixels / step) * step


def _duplicates(metrics: Mapping[str, ImageMetrics]) -> list[Finding]:
    """Compares each picture with all earlier ones; reports it once, with the first equal or similar one."""
    names = list(metrics)
    if not names:
        return []
    hashes = np.array([metrics[name].perceptual_hash for name in names], dtype=np.uint64)
    thumbnails = b"".join(bytes.fromhex(metrics[name].thumbnail) for name in names)
    grey_NP = np.frombuffer(thumbnails, dtype=np.uint8).reshape(len(names), -1).astype(np.float64)
    grey_NP -= grey_NP.mean(axis=1, keepdims=True)
    norm_N = np.linalg.norm(grey_NP, axis=1)
    found: list[Finding] = []
    first_of_digest: dict[str, str] = {}
    for index, name in enumerate(names):
        same = first_of_digest.setdefault(metrics[name].digest, name)
        if same != name:
            found.append(Finding("copy", name, {"other": same}))
            continue
        # The hash is fast but also joins pictures that merely share a composition; the correlation decides.
        candidates = np.flatnonzero(np.bitwise_count(hashes[:index] ^ hashes[index]) <= _MAX_HASH_DISTANCE)
        for other in candidates:
            scale = norm_N[index] * norm_N[other]
            if scale > 0 and grey_NP[index] @ grey_NP[other] / scale >= _MIN_CORRELATION:
                found.append(Finding("alike", name, {"other": names[other]}))
                break
    return found


def _marked_corners(metrics: Mapping[str, ImageMetrics]) -> list[int]:
    """Returns the corners that hold a small mark in at least three pictures and a third of the set."""
    counts = [sum(one.corners[corner] for one in metrics.values()) for corner in range(4)]
    return [corner for corner, count in enumerate(counts) if count >= max(3, len(metrics) / 3)]
