"""Where a training's pictures come from: one folder, several, a TOML file of folders, and the folders that settings name.

[[folder]]
path = "portraits"      beside the TOML file, or a whole path
repeats = 2             how often an epoch sees each picture
weight = 0.5            of their loss
caption = "a portrait"  for pictures that have none
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.dataset.captions import with_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.scan import scan
from trainer.errors import DatasetError

_KEYS = {"path": str, "repeats": int, "weight": (int, float), "caption": str}


def scan_all(sources: list[Path], *, trigger: str = "") -> Manifest:
    """The pictures of all folders and TOML files together. Raises DatasetError when one holds none."""
    parts: list[Manifest] = []
    for source in sources:
        if source.suffix.lower() == ".toml" and source.is_file():
            parts += [
                _scan_listed(source, number, row, trigger)
                for number, row in enumerate(_rows(source), start=1)
            ]
        else:
            parts.append(scan(source, trigger=trigger))
    return dataclasses.replace(
        parts[0],
        items=tuple(item for part in parts for item in part.items),
        problems=tuple(text for part in parts for text in part.problems),
    )


def _rows(source: Path) -> list[dict[str, Any]]:
    try:
        document = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{source.name} can't be read as TOML: {error}") from None
    rows = document.get("folder")
    if (
        set(document) != {"folder"}
        or not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) for row in rows)
    ):
        raise DatasetError(f"{source.name} must be a list of [[folder]] with a path each")
    return rows


def _scan_listed(source: Path, number: int, row: dict[str, Any], trigger: str) -> Manifest:
    for key, value in row.items():
        if key not in _KEYS or not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise DatasetError(
                f"{source.name}, folder {number}: {key} = {value!r} is not understood; there are path, repeats, weight and caption"
            )
    repeats, weight = row.get("repeats", 1), float(row.get("weight", 1.0))
    if "path" not in row or not 1 <= repeats <= 10_000 or not 0 <= weight <= 100:
        raise DatasetError(
            f"{source.name}, folder {number} needs a path, repeats from 1 to 10000 and a weight from 0 to 100"
        )
    found = scan(source.parent / row["path"], trigger=trigger)

    def listed(item: Item) -> Item:
        bare = item.caption in ("", trigger.strip())
        caption = with_trigger(row.get("caption", ""), trigger) if bare else item.caption
        return dataclasses.replace(
            item, caption=caption, repeats=item.repeats * repeats, weight=item.weight * weight
        )

    return dataclasses.replace(found, items=tuple(map(listed, found.items)))


def with_class_and_validation(manifest: Manifest, config: TrainConfig) -> Manifest:
    """The manifest with the class pictures and the pictures set aside that the settings ask for. Raises DatasetError."""
    if any(item.role != "train" for item in manifest.items):
        return manifest
    return _with_class(_with_validation(manifest, config), config)


def _with_class(manifest: Manifest, config: TrainConfig) -> Manifest:
    """As many class pictures an epoch as pictures of the user's: repeated when there are fewer, spread over the folder when more."""
    if not config.prior_folder:
        return manifest
    found = scan(Path(config.prior_folder))
    wanted = sum(item.repeats for item in manifest.items if item.role == "train")
    chosen = _spread(found.items, wanted)
    repeats = max(1, round(wanted / len(chosen)))
    items = [
        dataclasses.replace(
            item,
            role="class",
            repeats=repeats,
            weight=item.weight * config.prior_weight,
            caption=item.caption or config.prior_caption,
        )
        for item in chosen
    ]
    return dataclasses.replace(
        manifest, items=(*manifest.items, *items), problems=(*manifest.problems, *found.problems)
    )


def _with_validation(manifest: Manifest, config: TrainConfig) -> Manifest:
    """Pictures to measure with: of a folder of their own, or a share of the user's, spread over the set, at least one."""
    if config.validation_folder:
        found = scan(Path(config.validation_folder), trigger=config.trigger)
        aside = tuple(dataclasses.replace(item, role="validation") for item in found.items)
        return dataclasses.replace(
            manifest, items=(*manifest.items, *aside), problems=(*manifest.problems, *found.problems)
        )
    if not config.validation_share:
        return manifest
    if len(manifest.items) < 2:
        raise DatasetError("one picture alone can't be set aside; add pictures, or set validation_share to 0")
    count = max(1, round(config.validation_share * len(manifest.items)))
    chosen = set(_spread(tuple(range(len(manifest.items))), count))
    items = (
        dataclasses.replace(item, role="validation") if n in chosen else item
        for n, item in enumerate(manifest.items)
    )
    return dataclasses.replace(manifest, items=tuple(items))


def _spread(items: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """`count` of them, evenly over the list; all when there are no more."""
    return (
        items
        if len(items) <= count
        else tuple(items[number * len(items) // count] for number in range(count))
    )
