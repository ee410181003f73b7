"""What a training sees: pictures with captions, and the pictures that were left out and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture. `width` and `height` are after turning it upright."""

    path: str
    caption: str
    width: int
    height: int
    digest: str  # SHA-256 of the file's bytes
    repeats: int = 1
    weight: float = 1.0  # of its loss
    captions: tuple[str, ...] = ()  # one a line, when its caption file has several
    crop: tuple[float, float] | None = None  # share of the spare room (left, top); None: the centre
    role: str = (
        "train"  # "class": keeps what the base knows of the class; "validation": set aside to measure with
    )

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    folder: str
    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()

    @property
    def training_items(self) -> tuple[Item, ...]:
        """All but the pictures set aside."""
        return tuple(item for item in self.items if item.role != "validation")

    @property
    def validation_items(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.role == "validation")

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        for item in facts["items"]:
            if item["crop"] is None:
                del item["crop"]
        return facts

    @staticmethod
    def from_json(data: dict[str, Any]) -> Manifest:
        return Manifest(
            folder=data["folder"],
            items=tuple(_item(item) for item in data["items"]),
            problems=tuple(data["problems"]),
        )


def _item(facts: dict[str, Any]) -> Item:
    crop = facts.get("crop")
    return Item(
        **{**facts, "captions": tuple(facts.get("captions", ())), "crop": tuple(crop) if crop else None}
    )
