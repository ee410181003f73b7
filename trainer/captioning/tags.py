"""Tags by a WD tagger: an ONNX network that gives each tag of `selected_tags.csv` a probability.

selected_tags.csv has the columns tag_id, name, category (0 general, 4 character, 9 rating) and count, one row for each output.
The network takes pictures [N, side, side, 3], BGR, float32 from 0 to 255, padded with white to a square
(SmilingWolf's wd-*-tagger, v2 and v3).
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.captioning_config import CaptionOptions, Describe
from trainer.errors import CaptionerError
from trainer.headers.captioner import ONNX, TAGS, Captioner

GENERAL, CHARACTER = 0, 4
_SIDE = 448
# A face such as o_o, >_< or (o)_(o): no two letters or digits stand side by side, as in every word.
_WORD = re.compile(r"[^\W_]{2}")


@dataclass(frozen=True)
class Tag:
    name: str
    category: int


def load_tagger(captioner: Captioner, options: CaptionOptions) -> Describe:
    """Pictures to tags with commas between: characters first, then the others, each from the surest on. Raises CaptionerError."""
    tags = read_tags(captioner.path / TAGS, captioner.name)
    session = _session(captioner)
    taken, given = session.get_inputs()[0], session.get_outputs()[0]
    shape = taken.shape
    if len(shape) != 4 or shape[3] != 3 or given.shape[-1] != len(tags):
        raise CaptionerError(
            f"{ONNX} of {captioner.name} does not fit its {TAGS}; get both from where the model came from"
        )
    side = shape[1] if isinstance(shape[1], int) else _SIDE
    at_once = shape[0] if isinstance(shape[0], int) else options.batch  # older networks take a single picture

    def describe(pictures: list[Image.Image]) -> list[str]:
        texts = []
        for start in range(0, len(pictures), at_once):
            batch = np.stack([prepared(picture, side) for picture in pictures[start : start + at_once]])
            try:
                probabilities = session.run([given.name], {taken.name: batch})[0]
            except Exception as error:  # onnxruntime has an exception of its own for each fault
                raise CaptionerError(
                    f"the tagger failed ({type(error).__name__}); take a smaller batch, or download it again"
                ) from error
            texts += [", ".join(chosen(tags, row, options)) for row in probabilities]
        return texts

    return describe


def _session(captioner: Captioner) -> Any:
    import onnxruntime

    known = (
        "CUDAExecutionProvider",
        "ROCMExecutionProvider",
        "CoreMLExecutionProvider",
        "CPUExecutionProvider",
    )
    providers = [name for name in known if name in onnxruntime.get_available_providers()]
    onnxruntime.set_default_logger_severity(4)  # its warnings are for those who build it
    try:
        return onnxruntime.InferenceSession(captioner.path / ONNX, providers=providers)
    except Exception as error:  # as above
        raise CaptionerError(
            f"{ONNX} of {captioner.name} can't be opened ({type(error).__name__}); download it again"
        ) from error


def read_tags(path: Path, model: str) -> list[Tag]:
    """The rows of `selected_tags.csv`. Raises CaptionerError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise CaptionerError(f"{TAGS} of {model} can't be read; download it again") from None


def prepared(picture: Image.Image, side: int) -> np.ndarray:
    """[side, side, 3], BGR, float32 from 0 to 255: the picture in the middle of a white square."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def chosen(tags: list[Tag], probabilities: np.ndarray, options: CaptionOptions) -> list[str]:
    """Tags at or above their threshold, as words: characters first, each kind from the surest on. Ratings are left out."""
    thresholds = {GENERAL: options.general_threshold, CHARACTER: options.character_threshold}
    left_out = {_plain(tag) for tag in options.exclude_tags}
    sure = [
        (tag.category != CHARACTER, -float(probability), worded(tag.name))
        for tag, probability in zip(tags, probabilities, strict=True)
        if tag.category in thresholds
        and probability >= thresholds[tag.category]
        and _plain(tag.name) not in left_out
    ]
    return [name for _, _, name in sorted(sure)]


def worded(tag: str) -> str:
    """`long_hair` as `long hair`; faces such as `o_o` stay."""
    return tag.replace("_", " ") if _WORD.search(tag) else tag


def _plain(tag: str) -> str:
    return worded(tag.strip().casefold())
