"""HTML that compares two trainings: differing settings, loss curves, samples of the same steps. No gradio."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ui.store.runs import Runs, RunStatus
from ui.text import Words
from ui.views.curves import curves_svg, trend
from ui.views.html import element, escape, page_url, picture_url, text_element
from ui.views.progress import status_words

# The preset and the pace show in the settings that they decide; the name is in the heading.
_LEFT_OUT = {"name", "preset", "pace"}


def comparison_html(runs: Runs, left: str | None, right: str | None, words: Words) -> str:
    """Returns the comparison of two runs.

    Raises:
        RunError: there is no run of that name.
    """
    if not left or not right or left == right:
        return text_element("p", words("train.compare_pick"), class_="hint")
    names = (left, right)
    statuses = [runs.status(name) for name in names]
    heads = "".join(text_element("th", name, scope="col") for name in names)
    states = "".join(text_element("td", status_words(status, words)) for status in statuses)
    rows = "".join(
        element("tr", text_element("th", name, scope="row") + _cell(one) + _cell(other))
        for name, one, other in differences(runs, left, right)
    )
    setting = text_element("th", words("train.setting"), scope="col")
    head = element("thead", element("tr", setting + heads))
    body = element("tbody", element("tr", f"<td></td>{states}") + rows)
    none = "" if rows else text_element("p", words("train.compare_same"))
    table = element("table", head + body, class_="compare")
    return table + none + _curves(statuses, names, words) + _samples(statuses, names, words)


def differences(runs: Runs, left: str, right: str) -> list[tuple[str, Any, Any]]:
    """Returns (setting, value in the left run, value in the right run) of each setting that differs."""
    one, other = (dataclasses.asdict(runs.run(name).config) for name in (left, right))
    return [
        (name, one[name], other[name]) for name in one if name not in _LEFT_OUT and one[name] != other[name]
    ]


def _curves(statuses: Sequence[RunStatus], names: tuple[str, str], words: Words) -> str:
    views = [status.view for status in statuses]
    if any(len(view.losses) < 2 for view in views):
        return ""
    trends = [trend(view.losses, view.validation) for view in views]
    sentence = " ".join(
        f"{name}: {words(f'train.trend_{each.kind}', step=each.step)}"
        for name, each in zip(names, trends, strict=True)
    )
    return text_element("p", sentence) + curves_svg(views, words, sentence, names)


def _samples(statuses: Sequence[RunStatus], names: tuple[str, str], words: Words) -> str:
    """Returns the samples of each step and prompt that both runs have."""
    samples = [{(s["step"], s["prompt"]): s for s in status.view.samples} for status in statuses]
    rows = []
    for step, prompt in sorted(set(samples[0]) & set(samples[1])):
        figures = ""
        for name, pictures in zip(names, samples, strict=True):
            source = page_url(picture_url(name, pictures[step, prompt]))
            image = element("img", src=source, alt=f"{name}: {prompt}", width=160, height=160, loading="lazy")
            figures += element("figure", image + text_element("figcaption", name))
        title = text_element("h4", f"{words('train.at_step', step=step)}: {prompt}")
        rows.append(element("section", title + element("div", figures, class_="samples")))
    return "".join(rows)


def _cell(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        text = ", ".join(map(str, value))
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return element("td", escape(text))
