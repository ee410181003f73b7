"""Status of a training as sentences and HTML: progress, failures, notes and samples. No gradio."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from typing import Any

from trainer.dataset.manifest import Item
from trainer.runs.run import Run
from ui.store.runs import RunStatus
from ui.text import Words, sentences
from ui.views.html import element, escape, page_url, picture_path, picture_url, text_element

MAX_NOTES = 20  # notes of the trainer that are shown
_SAMPLE_SIDE = 160  # px of a shown sample


def status_words(status: RunStatus, words: Words, *, paused: bool = False) -> str:
    """Returns the status of a run as one or two sentences.

    Args:
        paused: whether the queue is paused.
    """
    view = status.view
    if status.state == "waiting":
        return words("train.waiting_paused" if paused else "train.waiting", place=status.queue_position)
    if status.state in ("failed", "starting"):
        return words(f"train.{status.state}")
    if status.state == "finished":
        parts = [words("train.finished")]
        if view.takes:
            parts.append(words("train.compatible_with", tools=", ".join(view.takes)))
        if view.advice:
            parts.append(words("train.advice", message=view.advice))
        return " ".join(parts)
    if status.state in ("stopped", "interrupted"):
        key = "killed" if status.was_killed else status.state if view.step else f"{status.state}_early"
        return words(f"train.{key}", step=view.step, steps=view.steps)
    line = _running_words(status, words)
    if status.is_stuck:
        line += f" {words('train.stuck', time=format_duration(status.silent_seconds, words))}"
    return line


def _running_words(status: RunStatus, words: Words) -> str:
    view = status.view
    if view.stage == "training" or (view.step and view.stage == "drawing"):
        values = {"step": view.step, "steps": view.steps, "percent": 100 * view.step // max(1, view.steps)}
        if view.seconds_left is None:
            return words("train.training_soon", **values)
        line = words("train.training", left=format_duration(view.seconds_left, words), **values)
        return f"{line} {stage_words(view.stage, words)}…" if view.stage == "drawing" else line
    line = f"{stage_words(view.stage, words)}…"
    if view.stage_total:
        line = words(
            "train.counted",
            stage=stage_words(view.stage, words),
            done=view.stage_done,
            total=view.stage_total,
            percent=100 * view.stage_done // view.stage_total,
        )
    if view.planned_seconds and not view.step:
        line += f" {words('train.then', left=format_duration(view.planned_seconds, words))}"
    return line


def stage_words(stage: str, words: Words) -> str:
    """Returns the name of a stage in the visitor's language; an unknown stage as the trainer names it."""
    key = f"train.stage_{stage.replace(' ', '_')}"
    return words(key) if key in sentences("en") else (stage or "…").capitalize()


def format_duration(seconds: float, words: Words) -> str:
    """Returns a duration in seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return words("train.seconds", n=max(1, round(seconds)))
    if seconds < 5400:
        return words("train.minutes", n=round(seconds / 60))
    return words("train.hours", n=f"{seconds / 3600:.1f}")


def status_html(
    status: RunStatus | None, words: Words, *, name: str = "", paused: bool = False, others: bool = False
) -> str:
    """Returns the status in the head of the page: a sentence with a bar, or an alert after a failure.

    Args:
        status: of the run; None if there is none to show.
        name: of the run.
        paused: whether the queue is paused.
        others: whether another user's training occupies the device.
    """
    if status is None:
        return text_element("div", words("page.others" if others else "page.nothing"), role="status")
    title = f"{text_element('strong', name)}: " if name else ""
    sentence = escape(status_words(status, words, paused=paused))
    line = element("div", title + sentence, role="status")
    return line + (failure_html(status, words) if status.state == "failed" else _bar(status, words))


def _bar(status: RunStatus, words: Words) -> str:
    view = status.view
    if status.state == "waiting":
        return ""
    done, total = (view.step, view.steps) if view.step else (view.stage_done, view.stage_total)
    if status.state == "finished":
        done = total = 1
    label = words("page.progress")
    if total:
        return element("progress", aria_label=label, value=done, max=total)
    if status.is_active:  # a bar without a value moves
        return element("progress", aria_label=label)
    return element("progress", aria_label=label, value=0, max=1)


def failure_html(status: RunStatus, words: Words) -> str:
    """Returns an alert with the cause of a failure, the trainer's message and the remedy."""
    view = status.view
    cause = f"train.failed_{view.cause or 'fault'}"
    parts = [words(cause) if cause in sentences("en") else ""]
    if view.message:
        parts.append(words("train.details", message=f"{view.message.rstrip('.')}."))
    remedy = remedy_words(view.remedy, words)
    if remedy:
        parts.append(f"{remedy}.")
    parts.append(words("train.kept"))
    return text_element("div", " ".join(filter(None, parts)), role="alert", class_="alert")


def remedy_words(remedy: dict[str, Any], words: Words) -> str:
    """Returns the changes of settings that avoid a failure as a sentence; "" if there are none."""
    if not remedy:
        return ""
    if None in remedy.values():  # the artist must choose the value
        return words("train.remedy_choose")
    changes = (f"{name} {_number(value)}" for name, value in remedy.items())
    return words("train.remedy", changes=", ".join(changes))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def notes_html(status: RunStatus, words: Words) -> str:
    """Returns the notes of the trainer, each once, in a folded list."""
    notes = list(dict.fromkeys(status.view.problems))
    if not notes:
        return ""
    shown = notes[:MAX_NOTES]
    if len(notes) > MAX_NOTES:
        shown.append(words("train.more", n=len(notes) - MAX_NOTES))
    rows = "".join(text_element("li", note) for note in shown)
    return element(
        "details", text_element("summary", words("train.notes", n=len(notes))) + element("ul", rows)
    )


def samples_html(run: Run, status: RunStatus, words: Words, project: str = "") -> str:
    """Returns a row for each prompt: the dataset's nearest picture, then the samples by step.

    Args:
        project: of the dataset; "" leaves its pictures out.
    """
    samples = status.view.samples
    if not samples:
        return text_element("p", words("train.samples_none"), class_="hint") if status.is_active else ""
    prompts = list(dict.fromkeys(sample["prompt"] for sample in samples))
    folder, items = _dataset(run) if project else ("", ())
    rows = []
    for number, prompt in enumerate(prompts):
        # A resumed run generates some samples again: the last one of a step counts.
        by_step = {sample["step"]: sample for sample in samples if sample["prompt"] == prompt}
        figures = [_sample(run.path.name, by_step[step], number, words) for step in sorted(by_step)]
        own = nearest(prompt, items)
        if own:
            figures.insert(0, _own_picture(os.path.relpath(own.path, folder), project, words))
        row = element("div", "".join(figures), class_="samples", tabindex=0, role="group", aria_label=prompt)
        rows.append(element("section", text_element("h4", prompt or "…") + row))
    title = text_element("h3", words("train.samples"))
    return element("div", title + "".join(rows), class_="sample-rows")


def _own_picture(name: str, project: str, words: Words) -> str:
    caption = f"{words('train.yours')}: {name}"
    return _figure(page_url(f"/thumb/{picture_path(project, name)}"), name, caption, "own")


def _sample(run: str, sample: dict[str, Any], number: int, words: Words) -> str:
    caption = words("train.sample", step=sample["step"], seed=sample.get("seed", number))
    alt = words("train.sample_alt", prompt=sample["prompt"], step=sample["step"])
    return _figure(page_url(picture_url(run, sample)), alt, caption, "sample")


def _figure(url: str, alt: str, caption: str, kind: str) -> str:
    image = element("img", src=url, alt=alt, width=_SAMPLE_SIDE, height=_SAMPLE_SIDE, loading="lazy")
    return element("figure", image + text_element("figcaption", caption), class_=kind)


def _dataset(run: Run) -> tuple[str, tuple[Item, ...]]:
    """Returns a run's dataset folder and its training pictures."""
    path = run.path / "manifest.json"
    return _dataset_at(run, path.stat().st_mtime_ns) if path.exists() else ("", ())


@functools.lru_cache(maxsize=32)
def _dataset_at(run: Run, modified_ns: int) -> tuple[str, tuple[Item, ...]]:
    """
    Args:
        modified_ns: time of the manifest, so that a changed manifest is read again.
    """
    del modified_ns
    manifest = run.manifest
    return manifest.folder, tuple(item for item in manifest.items if item.role == "train")


def nearest(prompt: str, items: Iterable[Item]) -> Item | None:
    """Returns the picture whose caption shares most words with a prompt, None if no caption shares any.

    A word counts more the fewer captions contain it. A word of every caption, such as the trigger word,
    counts nothing.
    """
    return _nearest(prompt, tuple(items))


@functools.lru_cache(maxsize=256)
def _nearest(prompt: str, items: tuple[Item, ...]) -> Item | None:
    captions = {item: _word_set(item.caption) for item in items}
    prompt_words = _word_set(prompt)
    counts = {word: sum(word in caption for caption in captions.values()) for word in prompt_words}

    def score(item: Item) -> tuple[float, float]:
        """Returns the weight of the shared words, then fewer other words as the tie-breaker."""
        shared = prompt_words & captions[item]
        telling = [word for word in shared if counts[word] < len(captions) or len(captions) == 1]
        return sum(1 / counts[word] for word in telling), -len(captions[item] - prompt_words)

    best = max(captions, key=score, default=None)
    return best if best is not None and score(best)[0] > 0 else None


def _word_set(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
