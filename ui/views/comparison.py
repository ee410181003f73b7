"""Two trainings side by side: the settings that differ, their curves on the same axes, their samples at the same steps. No gradio."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

from ui.store.runs import Runs
from ui.text import Words
from ui.views.curves import svg, trend
from ui.views.html import picture_url
from ui.views.progress import status_words

_NAMES = {"name", "preset", "pace"}  # said by what they decide


def comparison_html(runs: Runs, left: str | None, right: str | None, words: Words) -> str:
    """Raises RunError for a name that is no run."""
    if not left or not right or left == right:
        return f'<p class="hint">{_said(words("train.compare_pick"))}</p>'
    names = (left, right)
    standings = [runs.status(name) for name in names]
    heads = "".join(f'<th scope="col">{_said(name)}</th>' for name in names)
    states = "".join(f"<td>{_said(status_words(standing, words))}</td>" for standing in standings)
    rows = "".join(
        f'<tr><th scope="row">{_said(name)}</th><td>{_value(one)}</td><td>{_value(other)}</td></tr>'
        for name, one, other in differences(runs, left, right)
    )
    none = "" if rows else f"<p>{_said(words('train.compare_same'))}</p>"
    table = f'<table class="compare"><thead><tr><th scope="col">{_said(words("train.setting"))}</th>{heads}</tr></thead><tbody><tr><td></td>{states}</tr>{rows}</tbody></table>'
    return table + none + _curves(standings, names, words) + _samples(standings, names, words)


def differences(runs: Runs, left: str, right: str) -> list[tuple[str, Any, Any]]:
    """(setting, value in one, value in the other)."""
    one, other = (dataclasses.asdict(runs.run(name).config) for name in (left, right))
    return [(name, one[name], other[name]) for name in one if name not in _NAMES and one[name] != other[name]]


def _curves(standings: list[Any], names: tuple[str, str], words: Words) -> str:
    views = [standing.view for standing in standings]
    if any(len(view.losses) < 2 for view in views):
        return ""
    told = [trend(view.losses, view.validation) for view in views]
    said = " ".join(
        f"{name}: {words(f'train.trend_{found.kind}', step=found.step)}"
        for name, found in zip(names, told, strict=True)
    )
    return f"<p>{_said(said)}</p>{svg(views, words, said, names)}"


def _samples(standings: list[Any], names: tuple[str, str], words: Words) -> str:
    """Of each step and prompt that both have drawn; a run's final strip is none of them."""
    drawn = [{(s["step"], s["prompt"]): s for s in standing.view.samples} for standing in standings]
    rows = []
    for key in sorted(set(drawn[0]) & set(drawn[1])):
        step, prompt = key
        figures = "".join(
            f'<figure><img src="{picture_url(name, pictures[key])}" alt="{_said(f"{name}: {prompt}")}" width="160" height="160" loading="lazy">'
            f"<figcaption>{_said(name)}</figcaption></figure>"
            for name, pictures in zip(names, drawn, strict=True)
        )
        rows.append(
            f'<section><h4>{_said(words("train.at_step", step=step))}: {_said(prompt)}</h4><div class="samples">{figures}</div></section>'
        )
    return "".join(rows)


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return _said(", ".join(map(str, value)))
    return _said(f"{value:g}" if isinstance(value, float) else str(value))


def _said(text: str) -> str:
    return html.escape(text, quote=True)
