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

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    folder: str
    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Manifest:
        return Manifest(
            folder=data["folder"],
            items=tuple(Item(**item) for item in data["items"]),
            problems=tuple(data["problems"]),
        )
