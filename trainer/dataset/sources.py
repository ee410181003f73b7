"""Sources of a training's pictures: folders, TOML files that list folders, class images and validation
images.

[[folder]]
path = "portraits"      relative to the TOML file, or absolute
repeats = 2             multiplies how often an epoch uses each picture
weight = 0.5            multiplies the weight of each picture's loss
caption = "a portrait"  for pictures without a caption
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from trainer.config import TrainConfig
from trainer.dataset.captions import MAX_WEIGHT, with_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.scan import scan
from trainer.errors import DatasetError
from trainer.text_files import encoding_notes, read_toml_file

_KEYS = {"path": str, "repeats": int, "weight": (int, float), "caption": str}
_MAX_REPEATS = 10_000
T = TypeVar("T")


def scan_all(sources: list[Path], *, trigger: str = "", apart: Iterable[str] = ()) -> Manifest:
    """Returns the pictures of all folders and TOML files together.

    A folder that is given by itself is not read again as a sub-folder of another.

    Args:
        apart: folders of class or validation images, which may be inside those of the sources.

    Raises:
        DatasetError: a source holds no picture.
    """
    parts: list[Manifest] = []
    notes = encoding_notes((source.name, source) for source in sources if source.is_file())
    for source in sources:
        if source.suffix.lower() == ".toml" and source.is_file():
            rows = enumerate(_rows(source), start=1)
            parts += [_scan_row(source, number, row, trigger) for number, row in rows]
        else:
            parts.append(scan(source, trigger=trigger))
    own_folders = [*apart, *(part.folder for part in parts)]
    parts = [_without_folders(part, own_folders) for part in parts]
    return dataclasses.replace(
        parts[0],
        items=tuple(item for part in parts for item in part.items),
        problems=tuple(text for part in parts for text in part.problems),
        notes=(*notes, *(text for part in parts for text in part.notes)),
    )


def _without_folders(manifest: Manifest, folders: Iterable[str]) -> Manifest:
    """Returns the manifest without the pictures of these folders, as far as they are inside its own folder."""
    root = manifest.folder + os.sep
    inside = [os.path.abspath(folder) + os.sep for folder in folders if folder]
    inside = [folder for folder in inside if folder != root and folder.startswith(root)]
    if not inside:
        return manifest
    items = tuple(item for item in manifest.items if not item.path.startswith(tuple(inside)))
    return dataclasses.replace(manifest, items=items)


def _rows(source: Path) -> list[dict[str, Any]]:
    try:
        document = read_toml_file(source)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{source.name} can't be read as TOML: {error}") from None
    rows = document.get("folder")
    is_list = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    if set(document) != {"folder"} or not is_list:
        raise DatasetError(f"{source.name} must be a list of [[folder]] with a path each")
    return document["folder"]


def _scan_row(source: Path, number: int, row: dict[str, Any], trigger: str) -> Manifest:
    where = f"{source.name}, folder {number}"
    for key, value in row.items():
        if key not in _KEYS or not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise DatasetError(
                f"{where}: {key} = {value!r} is not understood; use path, repeats, weight and caption"
            )
    repeats, weight = row.get("repeats", 1), float(row.get("weight", 1.0))
    if "path" not in row or not 1 <= repeats <= _MAX_REPEATS or not 0 <= weight <= MAX_WEIGHT:
        raise DatasetError(
            f"{where} needs a path, repeats from 1 to {_MAX_REPEATS} and a weight from 0 to {MAX_WEIGHT:g}"
        )
    manifest = scan(source.parent / row["path"], trigger=trigger)

    def with_row(item: Item) -> Item:
        has_caption = item.caption not in ("", trigger.strip())
        caption = item.caption if has_caption else with_trigger(row.get("caption", ""), trigger)
        return dataclasses.replace(
            item, caption=caption, repeats=item.repeats * repeats, weight=item.weight * weight
        )

    return dataclasses.replace(manifest, items=tuple(map(with_row, manifest.items)))


def with_class_and_validation(
    manifest: Manifest, config: TrainConfig, read: Callable[..., Manifest] = scan
) -> Manifest:
    """Returns the manifest with the class and validation images that the settings name.

    A manifest that has such images already is returned unchanged.

    Args:
        read: scans their folders: `scan`, or `quick_scan` for an estimate.

    Raises:
        DatasetError: a folder of the settings can't be read, or a single picture is all there is and a share of
            it is to be validated.
    """
    if any(item.role != "train" for item in manifest.items):
        return manifest
    manifest = _without_folders(manifest, (config.prior_folder, config.validation_folder))
    return _with_class(_with_validation(manifest, config, read), config, read)


def _with_class(manifest: Manifest, config: TrainConfig, read: Callable[..., Manifest]) -> Manifest:
    """Adds class images, about as many in each epoch as training images.

    A larger folder is sampled at even distances; the images of a smaller one are repeated.
    """
    if not config.prior_folder:
        return manifest
    class_images = read(Path(config.prior_folder))
    if not class_images.items:  # only of `quick_scan`: `scan` raises
        return manifest
    count = sum(item.repeats for item in manifest.items if item.role == "train")
    selected = _evenly_spaced(class_images.items, count)
    repeats = max(1, round(count / len(selected)))
    items = [
        dataclasses.replace(
            item,
            role="class",
            repeats=repeats,
            weight=item.weight * config.prior_weight,
            caption=item.caption or config.prior_caption,
        )
        for item in selected
    ]
    return dataclasses.replace(
        manifest,
        items=(*manifest.items, *items),
        problems=(*manifest.problems, *class_images.problems),
        notes=(*manifest.notes, *class_images.notes),
    )


def _with_validation(manifest: Manifest, config: TrainConfig, read: Callable[..., Manifest]) -> Manifest:
    """Adds the images of the validation folder, or turns an evenly spaced share of the pictures into
    validation images.
    """
    if config.validation_folder:
        images = read(Path(config.validation_folder), trigger=config.trigger)
        added = (dataclasses.replace(item, role="validation") for item in images.items)
        return dataclasses.replace(
            manifest,
            items=(*manifest.items, *added),
            problems=(*manifest.problems, *images.problems),
            notes=(*manifest.notes, *images.notes),
        )
    if not config.validation_share:
        return manifest
    if len(manifest.items) < 2:
        raise DatasetError(
            "a single picture can't be used for validation too; add pictures, or set validation_share to 0"
        )
    count = max(1, round(config.validation_share * len(manifest.items)))
    selected = set(_evenly_spaced(tuple(range(len(manifest.items))), count))
    items = (
        dataclasses.replace(item, role="validation") if index in selected else item
        for index, item in enumerate(manifest.items)
    )
    return dataclasses.replace(manifest, items=tuple(items))


def _evenly_spaced(items: tuple[T, ...], count: int) -> tuple[T, ...]:
    """Returns `count` items at even distances; all if there are no more."""
    if len(items) <= count:
        return items
    return tuple(items[number * len(items) // count] for number in range(count))
