"""How a training stands, in words and as HTML: every name and caption escaped here. No gradio."""

from __future__ import annotations

import functools
import html
import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from trainer.dataset.manifest import Item
from trainer.runs.run import Run
from ui.store.runs import RunStatus
from ui.text import Words, sentences
from ui.views.html import picture_url

NOTES = 20  # shown of what the trainer has remarked


def status_words(standing: RunStatus, words: Words, *, paused: bool = False) -> str:
    """One sentence or two on how a run stands."""
    view = standing.view
    if standing.state == "waiting":
        return words("train.waiting_paused" if paused else "train.waiting", place=standing.place)
    if standing.state == "failed":
        return words("train.failed")
    if standing.state == "finished":
        takes = " " + words("train.compatible_with", tools=", ".join(view.takes)) if view.takes else ""
        advice = " " + words("train.advice", message=view.advice) if view.advice else ""
        return words("train.finished") + takes + advice
    if standing.state in ("stopped", "interrupted"):
        key = "killed" if standing.killed else standing.state if view.step else f"{standing.state}_early"
        return words(f"train.{key}", step=view.step, steps=view.steps)
    if standing.state == "starting":
        return words("train.starting")
    stuck = (
        " " + words("train.stuck", time=duration(standing.silent_seconds, words))
        if standing.seems_stuck
        else ""
    )
    return _at_work(standing, words) + stuck


def _at_work(standing: RunStatus, words: Words) -> str:
    view = standing.view
    if view.stage == "training" or (view.step and view.stage == "drawing"):
        facts = {"step": view.step, "steps": view.steps, "percent": 100 * view.step // max(1, view.steps)}
        if view.seconds_left is None:
            return words("train.training_soon", **facts)
        drawing = f" {stage_words(view.stage, words)}…" if view.stage == "drawing" else ""
        return words("train.training", left=duration(view.seconds_left, words), **facts) + drawing
    stage = stage_words(view.stage, words)
    then = (
        " " + words("train.then", left=duration(view.planned_seconds, words))
        if view.planned_seconds and not view.step
        else ""
    )
    if view.stage_total:
        percent = 100 * view.stage_done // view.stage_total
        return (
            words("train.counted", stage=stage, done=view.stage_done, total=view.stage_total, percent=percent)
            + then
        )
    return f"{stage}…{then}"


def stage_words(stage: str, words: Words) -> str:
    """A stage as the trainer calls it, in the visitor's language where it is a known one."""
    key = f"train.stage_{stage.replace(' ', '_')}"
    return words(key) if key in sentences("en") else (stage or "…").capitalize()


def duration(seconds: float, words: Words) -> str:
    if seconds < 90:
        return words("train.seconds", n=max(1, round(seconds)))
    return (
        words("train.minutes", n=round(seconds / 60))
        if seconds < 5400
        else words("train.hours", n=f"{seconds / 3600:.1f}")
    )


def status_html(
    standing: RunStatus | None, words: Words, *, name: str = "", paused: bool = False, others: bool = False
) -> str:
    """The head's status: a sentence, a bar and, after a fault, an alert with cause and remedy.

    Args:
        name: of the run.
        others: whether somebody else's training has the device.
    """
    if standing is None:
        return f'<div role="status">{_said(words("page.others" if others else "page.nothing"))}</div>'
    title = f"<strong>{_said(name)}</strong>: " if name else ""
    line = f'<div role="status">{title}{_said(status_words(standing, words, paused=paused))}</div>'
    if standing.state == "failed":
        return line + failure_html(standing, words)
    return line + _bar(standing, words)


def _bar(standing: RunStatus, words: Words) -> str:
    view = standing.view
    if standing.state == "waiting":
        return ""
    done, total = (view.step, view.steps) if view.step else (view.stage_done, view.stage_total)
    if standing.state == "finished":
        done = total = 1
    value = f'value="{done}" max="{total}"' if total else "" if standing.is_active else 'value="0" max="1"'
    return f'<progress aria-label="{_said(words("page.progress"))}" {value}></progress>'


def failure_html(standing: RunStatus, words: Words) -> str:
    """What happened, what to do, and that nothing is lost."""
    view = standing.view
    cause = (
        words(f"train.failed_{view.cause or 'fault'}")
        if f"train.failed_{view.cause or 'fault'}" in sentences("en")
        else ""
    )
    remedy = remedy_words(view.remedy, words)
    parts = [
        cause,
        words("train.details", message=f"{view.message.rstrip('.')}.") if view.message else "",
        f"{remedy}." if remedy else "",
    ]
    told = " ".join(part for part in (*parts, words("train.kept")) if part)
    return f'<div role="alert" class="alert">{_said(told)}</div>'


def remedy_words(remedy: dict[str, Any], words: Words) -> str:
    """The one change that would mend a failure; "" when there is none."""
    if not remedy:
        return ""
    if None in remedy.values():
        return words("train.remedy_choose")
    return words(
        "train.remedy", changes=", ".join(f"{name} {_number(value)}" for name, value in remedy.items())
    )


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def notes_html(standing: RunStatus, words: Words) -> str:
    """What the trainer has remarked, folded."""
    told = list(dict.fromkeys(standing.view.problems))
    if not told:
        return ""
    shown = [*told[:NOTES], *([words("train.more", n=len(told) - NOTES)] if len(told) > NOTES else [])]
    rows = "".join(f"<li>{_said(problem)}</li>" for problem in shown)
    return f"<details><summary>{_said(words('train.notes', n=len(told)))}</summary><ul>{rows}</ul></details>"


# Samples


def samples_html(run: Run, standing: RunStatus, words: Words, project: str = "") -> str:
    """A row for each prompt: the artist's own nearest picture, then the samples in the order of their steps."""
    samples = standing.view.samples
    if not samples:
        return f'<p class="hint">{_said(words("train.samples_none"))}</p>' if standing.is_active else ""
    prompts = list(dict.fromkeys(sample["prompt"] for sample in samples))
    folder, items = _pictures(run) if project else ("", ())
    rows = []
    for number, prompt in enumerate(prompts):
        own = nearest(prompt, items)
        taken = {
            sample["step"]: sample for sample in samples if sample["prompt"] == prompt
        }  # a resumed run draws some again
        figures = [_own(os.path.relpath(own.path, folder), project, words)] if own else []
        figures += [_sample(run.path.name, taken[step], number, words) for step in sorted(taken)]
        row = f'<div class="samples" tabindex="0" role="group" aria-label="{_said(prompt)}">{"".join(figures)}</div>'
        rows.append(f"<section><h4>{_said(prompt or '…')}</h4>{row}</section>")
    return f'<div class="sample-rows"><h3>{_said(words("train.samples"))}</h3>{"".join(rows)}</div>'


def _own(name: str, project: str, words: Words) -> str:
    return _figure(f"/thumb/{quote(project)}/{quote(name)}", name, f"{words('train.yours')}: {name}", "own")


def _sample(run: str, sample: dict[str, Any], number: int, words: Words) -> str:
    said = words("train.sample", step=sample["step"], seed=sample.get("seed", number))
    alt = words("train.sample_alt", prompt=sample["prompt"], step=sample["step"])
    return _figure(picture_url(run, sample), alt, said)


def _figure(url: str, alt: str, caption: str, kind: str = "sample") -> str:
    """
    Args:
        url: escaped already.
    """
    picture = f'<img src="{url}" alt="{_said(alt)}" width="160" height="160" loading="lazy">'
    return f'<figure class="{kind}">{picture}<figcaption>{_said(caption)}</figcaption></figure>'


def _pictures(run: Run) -> tuple[str, tuple[Item, ...]]:
    """A run's folder of pictures, and those that it trains on."""
    path = run.path / "manifest.json"
    return _pictures_of(run, path.stat().st_mtime_ns) if path.exists() else ("", ())


@functools.lru_cache(maxsize=32)
def _pictures_of(run: Run, made: int) -> tuple[str, tuple[Item, ...]]:
    manifest = run.manifest
    return manifest.folder, tuple(item for item in manifest.items if item.role == "train")


def nearest(prompt: str, items: Iterable[Item]) -> Item | None:
    """The picture whose caption shares most words with a prompt, the rarer ones counting more; None when none shares any."""
    return _nearest(prompt, tuple(items))


@functools.lru_cache(maxsize=256)
def _nearest(prompt: str, items: tuple[Item, ...]) -> Item | None:
    captions = {item: _words(item.caption) for item in items}
    wanted = _words(prompt)
    often = {word: sum(word in caption for caption in captions.values()) for word in wanted}

    def shared(item: Item) -> tuple[float, float]:
        common = wanted & captions[item]
        # A word of every caption (the trigger) tells nothing.
        return sum(
            1 / often[word] for word in common if often[word] < len(captions) or len(captions) == 1
        ), -len(captions[item] - wanted)

    best = max(captions, key=shared, default=None)
    return best if best is not None and shared(best)[0] > 0 else None


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _said(text: str) -> str:
    return html.escape(text, quote=True)
