"""Manifest of a training: its pictures with their captions, and the problems of pictures that were left
out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture with its caption."""

    path: str
    caption: str
    width: int  # in upright orientation
    height: int
    digest: str  # SHA-256 of the file
    repeats: int = 1  # in each epoch
    weight: float = 1.0  # of the picture's loss
    captions: tuple[str, ...] = ()  # lines of the caption file if it has several, else ()
    crop: tuple[float, float] | None = None  # share of the excess cut at the left and top; None: centred
    role: str = "train"  # "class": preserves what the base knows of the class; "validation": only measured

    @property
    def name(self) -> str:
        """The file name."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All pictures of a training, in order."""

    folder: str
    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()  # a sentence for each picture or caption that could not be read
    notes: tuple[str, ...] = ()  # a sentence for each thing that was read with a guess, such as an encoding

    @property
    def training_items(self) -> tuple[Item, ...]:
        """All pictures except the validation images."""
        return tuple(item for item in self.items if item.role != "validation")

    @property
    def validation_items(self) -> tuple[Item, ...]:
        """Pictures whose loss is measured without training on them."""
        return tuple(item for item in self.items if item.role == "validation")

    def to_json(self) -> dict[str, Any]:
        """Returns the content of manifest.json."""
        content = asdict(self)
        for item in content["items"]:
            if item["crop"] is None:  # as in manifests of earlier versions, which had no crops
                del item["crop"]
        if not self.notes:
            del content["notes"]
        return content

    @staticmethod
    def from_json(content: dict[str, Any]) -> Manifest:
        """Reads the content of manifest.json, also of earlier versions."""
        return Manifest(
            folder=content["folder"],
            items=tuple(_item(item) for item in content["items"]),
            problems=tuple(content["problems"]),
            notes=tuple(content.get("notes", ())),
        )


def _item(content: dict[str, Any]) -> Item:
    crop = content.get("crop")
    return Item(
        **{**content, "captions": tuple(content.get("captions", ())), "crop": tuple(crop) if crop else None}
    )
