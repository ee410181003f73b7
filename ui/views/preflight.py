"""Estimate and checks beside the Train button: what a training will need and what to fix first. No gradio.

Picture sizes, captions and the trigger word are checked here. Minutes and memory come from a child process
(ui/store/estimates.py).
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.dataset.checks import RECOMMENDED_PICTURES
from trainer.dataset.exposures import EpochLength
from trainer.dataset.manifest import Manifest
from trainer.dataset.quick_scan import quick_scan
from trainer.errors import ConfigError, TrainerError
from trainer.headers.base_model import BUNDLED_BASE, bucket_geometry, is_small
from ui.store.project_settings import MIN_PICTURES, training_values
from ui.text import Words
from ui.views.html import element, escape, text_element
from ui.views.progress import format_duration, remedy_words

GB = 10**9
_NATIVE_SIDE = {True: 128, False: 1024}  # px of a small base model, and of SDXL
_MIN_SIDE = 0.75  # share of the training resolution: a smaller picture is upscaled by more than a third
# Disk space of checkpoints as a multiple of the LoRA file: two checkpoints in fp32 with the optimizer's
# state.
_CHECKPOINT_FILES = 10

_NOTABLE_FACTOR = 1.25  # times as many steps as with full batches

_LEVELS = ("fix", "note", "fine")


@dataclass(frozen=True)
class Check:
    """One row of the checks.

    Attributes:
        level: "fix" (the training can't start), "note" or "fine".
        key: of the sentence, `train.<key>`.
        values: of the sentence's placeholders.
    """

    level: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedTraining:
    """The settings in the form, completed by defaults.

    Attributes:
        settings: as they are in the form.
        values: complete settings; None where they are invalid.
        problem: the reason why they are invalid.
    """

    folder: Path
    settings: dict[str, Any]
    values: dict[str, Any] | None
    problem: str = ""


def planned_training(folder: Path, settings: dict[str, Any], models: Path) -> PlannedTraining:
    """Completes the settings of the form as far as they are valid."""
    try:
        return PlannedTraining(folder, settings, training_values(folder, settings, models))
    except TrainerError as error:
        return PlannedTraining(folder, settings, None, str(error))


def checks(planned: PlannedTraining, models: Path, estimate: dict[str, Any] | None = None) -> list[Check]:
    """Returns all checks, those first that must be fixed.

    Args:
        estimate: an event "planned" or "refused" of ui/store/estimates.py, if there is one already.
    """
    settings, manifest = planned.settings, quick_scan(planned.folder)
    base = settings.get("base", BUNDLED_BASE)
    small = is_small(base, models)
    found = [
        *_pictures(manifest, settings, small),
        *_captions(manifest),
        *_trigger(settings, models),
        *_disk(planned.folder, estimate),
    ]
    if planned.values is None and len(manifest.items) >= MIN_PICTURES:
        found.append(Check("fix", "check_refused", {"message": planned.problem}))
    if planned.values is not None:
        found += _buckets(manifest, planned.values, models)
    found += _memory(estimate)
    if small and base == BUNDLED_BASE:
        found.append(Check("note", "check_bundled"))
    return sorted(found, key=lambda check: _LEVELS.index(check.level))


def _pictures(manifest: Manifest, settings: dict[str, Any], small: bool) -> list[Check]:
    count = len(manifest.items)
    if count < MIN_PICTURES:
        return [Check("fix", "check_fewest", {"n": count, "fewest": MIN_PICTURES})]
    enough = RECOMMENDED_PICTURES.get(settings.get("preset", "style"), 0)
    if count < enough:
        found = [Check("note", "check_few", {"n": count, "enough": enough})]
    else:
        found = [Check("fine", "check_pictures", {"n": count})]
    side = settings.get("resolution") or _NATIVE_SIDE[small]
    if isinstance(side, (int, float)):  # the form can hold text that is not a number yet
        upscaled = sum((item.width * item.height) ** 0.5 < _MIN_SIDE * side for item in manifest.items)
        if upscaled:
            found.append(Check("note", "check_small", {"n": upscaled, "side": side}))
    return found


def _buckets(manifest: Manifest, values: dict[str, Any], models: Path) -> list[Check]:
    """Returns a note where buckets with few pictures make an epoch notably longer.

    Args:
        values: complete settings.
    """
    length = EpochLength(manifest.items, *bucket_geometry(values.get("base", BUNDLED_BASE), models))
    try:
        factor = length(values)
    except ConfigError:  # no bucket fits the settings: the estimate reports it
        return []
    if factor < _NOTABLE_FACTOR:
        return []
    return [Check("note", "check_buckets", {"batch": values["batch"], "times": f"{factor:.2g}"})]


def _captions(manifest: Manifest) -> list[Check]:
    missing = sum(not item.caption.strip() for item in manifest.items)
    if not manifest.items:
        return []
    return [
        Check("note", "check_captions", {"n": missing}) if missing else Check("fine", "check_captions_fine")
    ]


def _trigger(settings: dict[str, Any], models: Path) -> list[Check]:
    word = str(settings.get("trigger", "")).strip()
    if not word:
        return [Check("note", "check_trigger")]
    if f"{word.lower()}</w>" in vocabulary(models):
        return [Check("note", "check_trigger_known", {"word": word})]
    return [Check("fine", "check_trigger_fine", {"word": word})]


def _disk(folder: Path, estimate: dict[str, Any] | None) -> list[Check]:
    if not estimate or estimate["kind"] != "planned":
        return []
    free, needed = shutil.disk_usage(folder).free, (1 + _CHECKPOINT_FILES) * estimate["file"]
    return [Check("fix", "check_disk", {"free": _gb(free), "needed": _gb(needed)})] if free < needed else []


def _memory(estimate: dict[str, Any] | None) -> list[Check]:
    if not estimate:
        return []
    if estimate["kind"] == "refused":
        key = "check_memory" if estimate["cause"] == "memory" else "check_refused"
        return [Check("fix", key, {"message": estimate["message"]})]
    values = {"memory": _gb(estimate["peak"]), "budget": _gb(estimate["budget"])}
    return [Check("fine", "check_memory_fine", values)]


@functools.lru_cache(maxsize=4)
def vocabulary(models: Path) -> frozenset[str]:
    """Returns the words that are one token for CLIP, whose meaning the base model therefore knows.

    All SDXL base models share CLIP's tokenizer, so the first one in the folder is read.
    """
    for path in sorted(models.glob("*/tokenizer/vocab.json")):
        try:
            return frozenset(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return frozenset()


def estimate_html(
    planned: PlannedTraining,
    estimate: dict[str, Any] | None,
    words: Words,
    *,
    is_pending: bool,
    is_busy: bool,
) -> str:
    """Returns one line with steps, minutes, memory and file size.

    Args:
        is_pending: whether the child process is estimating.
        is_busy: whether it waits until the device is free.
    """
    if planned.values is None:
        return ""
    values: dict[str, Any] = {"steps": planned.values["steps"]}
    if estimate and estimate["kind"] == "planned":
        key = "estimate"
        megabytes = estimate["file"] / 1e6
        values["time"] = format_duration(estimate["seconds"], words)
        values["memory"] = _gb(estimate["peak"])
        values["size"] = f"{megabytes:.{0 if megabytes > 100 else 1}f}"
    elif estimate:
        key = "estimate_none"
    else:
        key = "estimate_soon" if is_pending else "estimate_later" if is_busy else "estimate_none"
    return text_element("p", words(f"train.{key}", **values), role="status")


def checks_html(found: list[Check], words: Words, estimate: dict[str, Any] | None = None) -> str:
    """Returns the list of checks, open where something must be fixed."""
    if not found:
        return ""
    rows = []
    for check in found:
        text = words(f"train.{check.key}", **check.values)
        if check.key == "check_memory" and estimate:
            text = f"{text} {remedy_words(estimate.get('remedy', {}), words)}"
        level = text_element("strong", f"{words(f'train.{check.level}')}:")
        rows.append(element("li", f"{level} {escape(text)}", class_=check.level, data_check=check.key))
    must_fix = any(check.level == "fix" for check in found)
    notes = sum(check.level != "fine" for check in found)
    title = f"{words('train.check_title')} ({notes})" if notes else words("train.check_ready")
    content = text_element("summary", title) + element("ul", "".join(rows))
    return element("details", content, class_="checks", open=must_fix)


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / GB:.1f}"
