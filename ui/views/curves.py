"""The loss curve of a training as SVG, with its trend as a sentence. No gradio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.runs.events import View
from ui.text import Words
from ui.views.html import element, text_element

Points = Sequence[tuple[int, float]]  # (step, loss)
_WIDTH, _HEIGHT, _EDGE = 640, 200, 36
_RIGHT, _TOP = 8, 8  # px of margin
_NOTABLE = 0.01  # share of a validation loss: a smaller difference is noise of the measurement
_MIN_RISING = 3  # measurements above the lowest one
_WINDOWS = 6  # into which the training losses are divided
_MIN_LOSSES = 60  # for a trend of the training loss
_DRAWN_POINTS = 200


@dataclass(frozen=True)
class Trend:
    """The trend of a loss.

    Attributes:
        kind: "early", "falling", "level" or "rising".
        step: the step since which it is level or rising.
    """

    kind: str
    step: int = 0


def trend(losses: Points, validation: Points) -> Trend:
    """Returns the trend of the validation loss if there are three, otherwise of the training loss.

    Three validation losses above the lowest are "rising", as in trainer/training/validation.py.

    The training loss is mostly noise, because each step draws its own noise levels. Therefore the means of
    six windows are
    compared: a window that is not lower by two standard errors counts as level, and the training loss is
        never "rising".
    """
    if len(validation) >= _MIN_RISING:
        return _validation_trend(validation)
    if len(losses) < _MIN_LOSSES:
        return Trend("early")
    size = len(losses) // _WINDOWS
    windows = [[loss for _, loss in losses[n * size : (n + 1) * size]] for n in range(_WINDOWS)]
    means = [sum(window) / len(window) for window in windows]
    errors = [_standard_error(window, mean) for window, mean in zip(windows, means, strict=True)]
    for first in range(_WINDOWS - 1):
        is_level = all(
            means[later] > means[first] - 2 * math.hypot(errors[first], errors[later])
            for later in range(first + 1, _WINDOWS)
        )
        if is_level:
            return Trend("falling") if first >= _WINDOWS - 2 else Trend("level", losses[first * size][0])
    return Trend("falling")


def _standard_error(values: Sequence[float], mean: float) -> float:
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return math.sqrt(variance / len(values))


def _validation_trend(validation: Points) -> Trend:
    best_step, best = min(validation, key=lambda point: point[1])
    later = [loss for step, loss in validation if step > best_step]
    recent = later[-_MIN_RISING:]
    if len(recent) == _MIN_RISING and all(loss > (1 + _NOTABLE) * best for loss in recent):
        return Trend("rising", best_step)
    level = next(
        step
        for n, (step, loss) in enumerate(validation)
        if min(value for _, value in validation[n:]) > (1 - _NOTABLE) * loss
    )
    is_recent = level in (step for step, _ in validation[-2:])
    return Trend("falling") if is_recent else Trend("level", level)


def curve_html(view: View, words: Words) -> str:
    """Returns the loss curve of one run with its trend as a sentence."""
    if len(view.losses) < 2:
        return text_element("p", words("train.loss_none"), class_="hint")
    found = trend(view.losses, view.validation)
    description = words(f"train.trend_{found.kind}", step=found.step)
    sentence = words("train.loss_title", steps=view.losses[-1][0], words=description)
    hint = text_element("p", words("train.loss_hint"), class_="hint")
    return text_element("p", sentence, role="status") + curves_svg([view], words, sentence) + hint


def curves_svg(views: Sequence[View], words: Words, title: str, names: Sequence[str] = ()) -> str:
    """Returns the smoothed losses of one or two runs on the same axes, validation losses dashed.

    Args:
        title: text alternative of the picture.
        names: of the runs, for the legend.
    """
    lines: list[tuple[str, Points, str]] = []  # (class, points, label)
    for number, view in enumerate(views):
        prefix = f"{names[number]}: " if names else ""
        lines.append((f"loss-{number}", smoothed(view.losses), prefix + words("train.loss_label")))
        if view.validation:
            label = prefix + words("train.validation_label")
            lines.append((f"validation-{number}", view.validation, label))
    points = [point for _, line, _ in lines for point in line]
    last = max(step for step, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    high = high if high > low else low + 1e-9

    def position(point: tuple[int, float]) -> str:
        step, loss = point
        x = _EDGE + (_WIDTH - _EDGE - _RIGHT) * step / max(1, last)
        y = _TOP + (_HEIGHT - _EDGE) * (1 - (loss - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    polylines = "".join(
        element("polyline", class_=kind, points=" ".join(map(position, line))) for kind, line, _ in lines
    )
    scale = (
        text_element("text", f"{high:.3g}", x=2, y=14)
        + text_element("text", f"{low:.3g}", x=2, y=_HEIGHT - _EDGE + 8)
        + text_element("text", "0", x=_EDGE, y=_HEIGHT - 6)
        + text_element("text", str(last), x=_WIDTH - _RIGHT, y=_HEIGHT - 6, text_anchor="end")
    )
    legend = "".join(text_element("li", label, class_=kind) for kind, _, label in lines)
    view_box = f"0 0 {_WIDTH} {_HEIGHT}"
    svg = element("svg", scale + polylines, class_="curve", viewBox=view_box, role="img", aria_label=title)
    return svg + element("ul", legend, class_="legend")


def smoothed(losses: Points) -> list[tuple[int, float]]:
    """Returns an exponential moving average over a twentieth of the points, thinned to about 200."""
    decay = math.exp(-1 / max(1.0, len(losses) / 20))
    total = weight = 0.0
    points = []
    for step, loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        points.append((step, total / weight))
    return points[:: max(1, len(points) // _DRAWN_POINTS)]
