"""Captions as tags by a WD tagger: an ONNX network that predicts a probability for each tag of
`selected_tags.csv`.

`selected_tags.csv` has the columns tag_id, name, category (0 general, 4 character, 9 rating) and count, and
one row for each output of the network. The network takes images of shape (N, side, side, 3): BGR, float32
from 0 to 255, padded with white to a square (SmilingWolf's wd-*-tagger, v2 and v3).
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
_DEFAULT_SIDE = 448  # px; for networks whose input shape names no side
_PROVIDERS = (
    "CUDAExecutionProvider",
    "ROCMExecutionProvider",
    "CoreMLExecutionProvider",
    "CPUExecutionProvider",
)
# Two adjacent letters or digits, as in every word but not in emoticons such as o_o, >_< or (o)_(o).
_WORD = re.compile(r"[^\W_]{2}")


@dataclass(frozen=True)
class Tag:
    """A row of selected_tags.csv."""

    name: str
    category: int


def load_tagger(captioner: Captioner, options: CaptionOptions) -> Describe:
    """Returns a function from pictures to comma-separated tags (see `select_tags`). Raises CaptionerError."""
    tags = read_tags(captioner.path / TAGS, captioner.name)
    session = _open_session(captioner)
    network_input, network_output = session.get_inputs()[0], session.get_outputs()[0]
    shape = network_input.shape
    if len(shape) != 4 or shape[3] != 3 or network_output.shape[-1] != len(tags):
        raise CaptionerError(
            f"{ONNX} of {captioner.name} does not fit its {TAGS}; download both from the same source"
        )
    # Dimensions that are not fixed have names instead of numbers; older networks have a fixed batch of 1.
    side = shape[1] if isinstance(shape[1], int) else _DEFAULT_SIDE
    batch_size = shape[0] if isinstance(shape[0], int) else options.batch

    def describe(pictures: list[Image.Image]) -> list[str]:
        texts = []
        for start in range(0, len(pictures), batch_size):
            images = [preprocess(picture, side) for picture in pictures[start : start + batch_size]]
            try:
                inputs = {network_input.name: np.stack(images)}
                probabilities = session.run([network_output.name], inputs)[0]
            except Exception as error:  # onnxruntime has many exception classes without a common base
                raise CaptionerError(
                    f"the tagger failed ({type(error).__name__}); use a smaller batch, or download it again"
                ) from error
            texts += [", ".join(select_tags(tags, row, options)) for row in probabilities]
        return texts

    return describe


def _open_session(captioner: Captioner) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    onnxruntime.set_default_logger_severity(
        4
    )  # fatal errors only: its warnings concern the authors of networks
    try:
        return onnxruntime.InferenceSession(
            captioner.path / ONNX, providers=[name for name in _PROVIDERS if name in available]
        )
    except Exception as error:  # as above
        raise CaptionerError(
            f"{ONNX} of {captioner.name} can't be opened ({type(error).__name__}); download it again"
        ) from error


def read_tags(path: Path, model: str) -> list[Tag]:
    """Returns the rows of selected_tags.csv. Raises CaptionerError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise CaptionerError(f"{TAGS} of {model} can't be read; download it again") from None


def preprocess(picture: Image.Image, side: int) -> np.ndarray:
    """Returns the picture in the middle of a white square: shape (side, side, 3), BGR, float32 from 0 to
    255.
    """
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def select_tags(tags: list[Tag], probabilities: np.ndarray, options: CaptionOptions) -> list[str]:
    """Returns the tags at or above their threshold as text, without ratings and excluded tags.

    Characters come before general tags, each in the order of falling probability.

    Args:
        probabilities: of each tag, shape (tags,).
    """
    thresholds = {GENERAL: options.general_threshold, CHARACTER: options.character_threshold}
    excluded = {_normalised(tag) for tag in options.exclude_tags}
    selected = [
        (tag.category != CHARACTER, -float(probability), tag_text(tag.name))
        for tag, probability in zip(tags, probabilities, strict=True)
        if tag.category in thresholds
        and probability >= thresholds[tag.category]
        and _normalised(tag.name) not in excluded
    ]
    return [text for _, _, text in sorted(selected)]


def tag_text(tag: str) -> str:
    """Returns `long_hair` as `long hair`, but emoticons such as `o_o` unchanged."""
    return tag.replace("_", " ") if _WORD.search(tag) else tag


def _normalised(tag: str) -> str:
    return tag_text(tag.strip().casefold())
