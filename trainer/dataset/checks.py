"""The dataset doctor: what is wrong with a set of pictures, said before a minute of training is spent, each with what to do.

It looks at measures (`measures.py`) only, so that findings for another base or preset cost nothing.
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

FEWEST = {"style": 10, "character": 8, "concept": 5}  # pictures, by preset
ENLARGED_BY = 1.15  # a picture stretched by more than this to fill its bucket is too small
CROPPED = 0.25  # share of a picture's area
_SEE_THROUGH = 0.005
_ALIKE_BITS, _ALIKE_CORRELATION = 10, 0.8
_MISSING = -1.25  # log10 of a band's energy against the bands of coarse detail: less is no detail of its own
_STEEP = 2.2  # log10 by which the coarsest band outdoes the middle ones: only shapes are left
_BLURRED = 4  # half octaves without detail: more than any camera or enlargement to twice the size leaves out

# The set as a whole first, then by how much a picture harms a training.
WORDS = {
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
KINDS = tuple(WORDS)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Finding:
    kind: str  # of KINDS
    picture: str = ""  # its name; "" for the whole set
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return WORDS[self.kind].format(**self.facts)


def findings(
    measures: Mapping[str, ImageMetrics], placements: Mapping[str, Placement] | None = None, preset: str = ""
) -> list[Finding]:
    """All findings on a set, by kind and then by name.

    Args:
        measures: by picture.
        placements: how the base's buckets take each picture, by picture; without them nothing is said of size and crop.
        preset: what is taught; without it nothing is said of the number of pictures.
    """
    placements, found = placements or {}, []
    if preset in FEWEST and len(measures) < FEWEST[preset]:
        found.append(
            Finding("few", facts={"count": len(measures), "preset": preset, "fewest": FEWEST[preset]})
        )
    found += _repeated(measures)
    marked = _marked_corners(measures)
    for name, seen in measures.items():
        found += _alone(name, seen)
        if name in placements:
            found += _placed(name, seen, placements[name])
        found += [Finding("corner", name, {"corner": CORNERS[at]}) for at in marked if seen.corners[at]]
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), finding.picture))


def missing_octaves(detail: tuple[float, ...]) -> tuple[float, bool]:
    """(octaves of the finest detail that a picture lacks, whether it is blurred rather than enlarged).

    An enlarged picture holds no frequency beyond its old half cycle per pixel; a blur falls off from coarse to fine.
    """
    if len(detail) != BANDS:
        return 0.0, False
    steep = detail[-1] - detail[4] > _STEEP
    level = detail[-1] if steep else statistics.median(detail[4:8])
    first = next((band for band, energy in enumerate(detail) if energy - level >= _MISSING), BANDS)
    return (first + 0.5) / 2 if first else 0.0, steep or first >= _BLURRED


def _alone(name: str, seen: ImageMetrics) -> list[Finding]:
    found = []
    if seen.clear >= _SEE_THROUGH:
        found.append(Finding("see_through", name, {"percent": max(1, round(100 * seen.clear))}))
    if any(seen.bars):
        found.append(Finding("bars", name))
    return found


def _placed(name: str, seen: ImageMetrics, placement: Placement) -> list[Finding]:
    found, times = [], placement.resized[0] / seen.width
    area = placement.resized[0] * placement.resized[1]
    if times > ENLARGED_BY:
        found.append(
            Finding("small", name, {"width": seen.width, "height": seen.height, "times": f"{times:.1f}"})
        )
    octaves, is_blurred = missing_octaves(seen.detail)
    holds = seen.width / 2**octaves, seen.height / 2**octaves
    # Soft at full size is no harm where the training shrinks it anyway.
    if octaves and holds[0] * holds[1] < area / 2 and times <= ENLARGED_BY:
        facts = {} if is_blurred else {"width": _rounded(holds[0]), "height": _rounded(holds[1])}
        found.append(Finding("blurred" if is_blurred else "enlarged", name, facts))
    if placement.cropped_share > CROPPED:
        found.append(Finding("cropped", name, {"percent": round(100 * placement.cropped_share)}))
    return found


def _rounded(pixels: float) -> int:
    """To two digits: the estimate is no better."""
    step = 10 ** max(0, math.floor(math.log10(max(pixels, 1))) - 1)
    return round(pixels / step) * step


def _repeated(measures: Mapping[str, ImageMetrics]) -> list[Finding]:
    """Each picture that equals or resembles an earlier one is told once, with the first such."""
    names = list(measures)
    if not names:
        return []
    looks = np.array([measures[name].look for name in names], dtype=np.uint64)
    greys = b"".join(bytes.fromhex(measures[name].tiny) for name in names)
    tiny = np.frombuffer(greys, dtype=np.uint8).reshape(len(names), -1).astype(np.float64)
    tiny -= tiny.mean(axis=1, keepdims=True)
    length = np.linalg.norm(tiny, axis=1)
    found: list[Finding] = []
    first: dict[str, str] = {}  # of each file
    for at in range(len(names)):
        same = first.setdefault(measures[names[at]].digest, names[at])
        if same != names[at]:
            found.append(Finding("copy", names[at], {"other": same}))
            continue
        near = np.flatnonzero(np.bitwise_count(looks[:at] ^ looks[at]) <= _ALIKE_BITS)
        for other in near:
            scale = length[at] * length[other]
            if scale > 0 and tiny[at] @ tiny[other] / scale >= _ALIKE_CORRELATION:
                found.append(Finding("alike", names[at], {"other": names[other]}))
                break
    return found


def _marked_corners(measures: Mapping[str, ImageMetrics]) -> list[int]:
    """Corners in which something stands apart in at least three pictures and a third of the set."""
    counts = [sum(seen.corners[at] for seen in measures.values()) for at in range(4)]
    return [at for at, count in enumerate(counts) if count >= max(3, len(measures) / 3)]
