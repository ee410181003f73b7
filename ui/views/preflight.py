"""What is said beside the Train button before it is pressed: what a training will take, and what to mend first. No gradio.

Sizes, captions and words are looked at here; minutes and memory come from a child process (ui/store/estimates.py).
"""

from __future__ import annotations

import functools
import html
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.dataset.checks import RECOMMENDED_PICTURES
from trainer.dataset.manifest import Manifest
from trainer.dataset.quick_scan import quick_scan
from trainer.errors import TrainerError
from trainer.headers.base_model import is_small
from ui.store.project_settings import MIN_PICTURES, training_values
from ui.text import Words
from ui.views.progress import duration, remedy_words

GB = 10**9
_NATIVE = {True: 128, False: 1024}  # px of a base narrower than SDXL, and of SDXL
_ENLARGED = 0.75  # of the side: below, a picture is enlarged by more than a third
_CHECKPOINTS = 10  # times the file: two checkpoints in full precision with the optimizer's numbers
_BUNDLED = "tiny-sdxl"


@dataclass(frozen=True)
class Check:
    level: str  # "fix": the training can't begin; "note"; "fine"
    key: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What the form says, made whole as far as it can be."""

    folder: Path
    settings: dict[str, Any]
    values: dict[str, Any] | None  # None when they can't be
    problem: str = ""


def wish(folder: Path, settings: dict[str, Any], models: Path) -> Wish:
    try:
        return Wish(folder, settings, training_values(folder, settings, models))
    except TrainerError as error:
        return Wish(folder, settings, None, str(error))


def checks(wished: Wish, models: Path, answer: dict[str, Any] | None = None) -> list[Check]:
    """All that is worth saying, what must be mended first.

    Args:
        answer: of ui/store/estimates.py, where there is one.
    """
    settings, found = wished.settings, quick_scan(wished.folder)
    small = is_small(settings.get("base", _BUNDLED), models)
    said = [
        *_pictures(found, settings, small),
        *_captions(found),
        *_trigger(settings, models),
        *_disk(wished.folder, answer),
    ]
    count = len(found.items)
    if wished.values is None and count >= MIN_PICTURES:
        said.append(Check("fix", "check_refused", {"message": wished.problem}))
    if answer and answer["kind"] == "refused":
        said.append(
            Check(
                "fix",
                "check_memory" if answer["cause"] == "memory" else "check_refused",
                {"message": answer["message"]},
            )
        )
    if answer and answer["kind"] == "planned":
        said.append(
            Check(
                "fine", "check_memory_fine", {"memory": _gb(answer["peak"]), "budget": _gb(answer["budget"])}
            )
        )
    if small and settings.get("base", _BUNDLED) == _BUNDLED:
        said.append(Check("note", "check_bundled", {}))
    return sorted(said, key=lambda check: ("fix", "note", "fine").index(check.level))


def _pictures(found: Manifest, settings: dict[str, Any], small: bool) -> list[Check]:
    count = len(found.items)
    if count < MIN_PICTURES:
        return [Check("fix", "check_fewest", {"n": count, "fewest": MIN_PICTURES})]
    enough = RECOMMENDED_PICTURES.get(settings.get("preset", "style"), 0)
    said = [
        Check("note", "check_few", {"n": count, "enough": enough})
        if count < enough
        else Check("fine", "check_pictures", {"n": count})
    ]
    side = settings.get("resolution") or _NATIVE[small]
    tiny = (
        sum((item.width * item.height) ** 0.5 < _ENLARGED * side for item in found.items)
        if isinstance(side, (int, float))
        else 0
    )
    return [*said, *([Check("note", "check_small", {"n": tiny, "side": side})] if tiny else [])]


def _captions(found: Manifest) -> list[Check]:
    missing = sum(not item.caption.strip() for item in found.items)
    if not found.items:
        return []
    return [
        Check("note", "check_captions", {"n": missing})
        if missing
        else Check("fine", "check_captions_fine", {})
    ]


def _trigger(settings: dict[str, Any], models: Path) -> list[Check]:
    word = str(settings.get("trigger", "")).strip()
    if not word:
        return [Check("note", "check_trigger", {})]
    known = f"{word.lower()}</w>" in vocabulary(models)
    return [
        Check(
            "note" if known else "fine",
            "check_trigger_known" if known else "check_trigger_fine",
            {"word": word},
        )
    ]


def _disk(folder: Path, answer: dict[str, Any] | None) -> list[Check]:
    if not answer or answer["kind"] != "planned":
        return []
    free, needed = shutil.disk_usage(folder).free, (1 + _CHECKPOINTS) * answer["file"]
    return [Check("fix", "check_disk", {"free": _gb(free), "needed": _gb(needed)})] if free < needed else []


@functools.lru_cache(maxsize=4)
def vocabulary(models: Path) -> frozenset[str]:
    """Words that CLIP's tokenizer knows as one token (all SDXL bases share it): what they mean is in the base already."""
    for path in sorted(models.glob("*/tokenizer/vocab.json")):
        try:
            return frozenset(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return frozenset()


def estimate_html(
    wished: Wish, answer: dict[str, Any] | None, words: Words, *, is_coming: bool, is_busy: bool
) -> str:
    """One line: steps, minutes, memory, size of the file."""
    if wished.values is None:
        return ""
    facts: dict[str, Any] = {"steps": wished.values["steps"]}
    key = "estimate_soon" if is_coming else "estimate_later" if is_busy else "estimate_none"
    if answer and answer["kind"] == "planned":
        size = f"{answer['file'] / 1e6:.{0 if answer['file'] > 1e8 else 1}f}"
        facts |= {"time": duration(answer["seconds"], words), "memory": _gb(answer["peak"]), "size": size}
        key = "estimate"
    elif answer:
        return f'<p role="status">{html.escape(words("train.estimate_none", **facts))}</p>'
    return f'<p role="status">{html.escape(words(f"train.{key}", **facts))}</p>'


def checks_html(said: list[Check], words: Words, answer: dict[str, Any] | None = None) -> str:
    """The list, folded when nothing needs doing."""
    rows = []
    for check in said:
        text = words(f"train.{check.key}", **check.facts)
        remedy = (
            remedy_words(answer.get("remedy", {}), words) if check.key == "check_memory" and answer else ""
        )
        level = f"<strong>{html.escape(words(f'train.{check.level}'))}:</strong> "
        rows.append(
            f'<li class="{check.level}" data-check="{check.key}">{level}{html.escape(text)} {html.escape(remedy)}</li>'
        )
    if not rows:
        return ""
    must = any(check.level == "fix" for check in said)
    notes = sum(check.level != "fine" for check in said)
    title = f"{words('train.check_title')} ({notes})" if notes else words("train.check_ready")
    return f'<details class="checks"{" open" if must else ""}><summary>{html.escape(title)}</summary><ul>{"".join(rows)}</ul></details>'


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / GB:.1f}"
