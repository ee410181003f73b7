"""A training's loss as a picture with a sentence: how it goes, told in words, and drawn for those who want to see it. No gradio."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.runs.events import View
from ui.text import Words

Points = Sequence[tuple[int, float]]
_WIDTH, _HEIGHT, _EDGE = 640, 200, 36
_NOTABLE = 0.01  # of a loss: less is noise of the measurement
_WINDOWS = 6  # that a training's losses are looked at in
_FEWEST = 60  # losses before anything is said of them


@dataclass(frozen=True)
class Trend:
    kind: str  # "early", "falling", "level" or "rising"
    step: int = 0  # since when


def trend(losses: Points, validation: Points) -> Trend:
    """How the loss goes: by the pictures set aside where there are any, otherwise by the training loss.

    Three measurements above the lowest are "rising", as in trainer/training/validation.py. A training loss is noise for the most part
    (each step draws its own noise levels), so spans of it are compared: what falls by less than two standard errors is level,
    and of its rising nothing is said.
    """
    if len(validation) >= 3:
        return _measured(validation)
    if len(losses) < _FEWEST:
        return Trend("early")
    size = len(losses) // _WINDOWS
    spans = [[loss for _, loss in losses[n * size : (n + 1) * size]] for n in range(_WINDOWS)]
    means = [sum(span) / len(span) for span in spans]
    errors = [
        math.sqrt(sum((loss - mean) ** 2 for loss in span) / max(1, len(span) - 1) / len(span))
        for span, mean in zip(spans, means, strict=True)
    ]
    for first in range(_WINDOWS - 1):
        # Level since `first`: no later span lies notably below it.
        if all(
            means[later] > means[first] - 2 * math.hypot(errors[first], errors[later])
            for later in range(first + 1, _WINDOWS)
        ):
            return Trend("falling") if first >= _WINDOWS - 2 else Trend("level", losses[first * size][0])
    return Trend("falling")


def _measured(validation: Points) -> Trend:
    best_step, best = min(validation, key=lambda point: point[1])
    later = [loss for step, loss in validation if step > best_step]
    if len(later) >= 3 and all(loss > (1 + _NOTABLE) * best for loss in later[-3:]):
        return Trend("rising", best_step)
    level = next(
        step
        for n, (step, loss) in enumerate(validation)
        if min(value for _, value in validation[n:]) > (1 - _NOTABLE) * loss
    )
    return Trend("falling") if level in (step for step, _ in validation[-2:]) else Trend("level", level)


def curve_html(view: View, words: Words) -> str:
    """The curves as SVG, and their trend in words."""
    if len(view.losses) < 2:
        return f'<p class="hint">{_said(words("train.loss_none"))}</p>'
    told = trend(view.losses, view.validation)
    sentence = words(
        "train.loss_title", steps=view.losses[-1][0], words=words(f"train.trend_{told.kind}", step=told.step)
    )
    return f'<p role="status">{_said(sentence)}</p>{svg([view], words, sentence)}<p class="hint">{_said(words("train.loss_hint"))}</p>'


def svg(views: Sequence[View], words: Words, title: str, names: Sequence[str] = ()) -> str:
    """The smoothed losses of one or two trainings, on the same axes; pictures set aside as dots on a dashed line."""
    smooth = [smoothed(view.losses) for view in views]
    every = [point for points in (*smooth, *(view.validation for view in views)) for point in points]
    last = max(step for step, _ in every)
    low, high = min(loss for _, loss in every), max(loss for _, loss in every)
    high = high if high > low else low + 1e-9

    def place(point: tuple[int, float]) -> str:
        x = _EDGE + (_WIDTH - _EDGE - 8) * point[0] / max(1, last)
        return f"{x:.1f},{8 + (_HEIGHT - _EDGE) * (1 - (point[1] - low) / (high - low)):.1f}"

    drawn, legend = [], []
    for number, view in enumerate(views):
        drawn.append(f'<polyline class="loss-{number}" points="{" ".join(map(place, smooth[number]))}"/>')
        label = words("train.loss_label")
        legend.append((f"loss-{number}", f"{names[number]}: {label}" if names else label))
        if view.validation:
            drawn.append(
                f'<polyline class="aside-{number}" points="{" ".join(map(place, view.validation))}"/>'
            )
            label = words("train.validation_label")
            legend.append((f"aside-{number}", f"{names[number]}: {label}" if names else label))
    marks = f'<text x="2" y="14">{high:.3g}</text><text x="2" y="{_HEIGHT - _EDGE + 8}">{low:.3g}</text>'
    marks += f'<text x="{_EDGE}" y="{_HEIGHT - 6}">0</text><text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">{last}</text>'
    keys = "".join(f'<li class="{kind}">{_said(text)}</li>' for kind, text in legend)
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_said(title)}">{marks}{"".join(drawn)}</svg>'
        f'<ul class="legend">{keys}</ul>'
    )


def smoothed(losses: Points) -> list[tuple[int, float]]:
    """A moving average that counts the last twentieth of the points most; about 200 of them are kept to be drawn."""
    keep = math.exp(-1 / max(1.0, len(losses) / 20))
    total = weight = 0.0
    points = []
    for step, loss in losses:
        total, weight = keep * total + loss, keep * weight + 1
        points.append((step, total / weight))
    return points[:: max(1, len(points) // 200)]


def _said(text: str) -> str:
    return html.escape(text, quote=True)
