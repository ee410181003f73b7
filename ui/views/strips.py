"""Pictures at several strengths as HTML: a strip with its slider, two of them laid over each other, and a grid of checkpoints.

A picture is {"url", "prompt", "strength"}, of a grid with "step". Everything a person typed is escaped here. No gradio.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ui.store.drawings import Drawing
from ui.store.library import LoraEntry
from ui.text import Words

Pictures = Sequence[dict[str, Any]]


def run_pictures(run: str, told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the strip that a training drew. A browser keeps pictures, and a continued run draws new ones under the same names."""
    return [
        {**picture, "url": f"/picture/{quote(run)}/{quote(picture['file'])}?v={picture.get('made', 0)}"}
        for picture in told
    ]


def drawn_pictures(drawing: Drawing) -> list[dict[str, Any]]:
    return [
        {**picture, "url": f"/drawn/{drawing.id}/{quote(picture['file'])}"} for picture in drawing.pictures()
    ]


def strip_html(words: Words, pictures: Pictures, *, prefer: str = "") -> str:
    """One picture a prompt, and a slider that swaps them all: 0 is the base model's own picture.

    Args:
        prefer: key of the LoRA whose preferred strength the slider's can become.
    """
    if not pictures:
        return f'<p class="hint">{_said(words("try_it.no_strip"))}</p>'
    prompts, strengths = _axes(pictures)
    at = strengths.index(1.0) if 1.0 in strengths else len(strengths) - 1
    sources = {(picture["prompt"], picture["strength"]): picture["url"] for picture in pictures}
    told = [_strength(words, strength) for strength in strengths]
    figures = "".join(
        _figure(prompt, [sources[prompt, strength] for strength in strengths], at) for prompt in prompts
    )
    button = ""
    if prefer:
        button = (
            f'<p class="row"><button type="button" class="plain prefer" data-key="{_said(quote(prefer))}">{_said(words("try_it.prefer"))}</button>'
            f'<span class="told" role="status" data-silent="{_said(words("try_it.unreachable"))}"></span></p>'
        )
    return (
        f'<div class="tryout" data-strengths="{_listed(strengths)}"><div class="strength">'
        f'<input type="range" aria-label="{_said(words("try_it.strength_label"))}" min="0" max="{len(strengths) - 1}" step="1" value="{at}" '
        f'data-told="{_listed(told)}" aria-valuetext="{_said(told[at])}"><output>{_said(told[at])}</output></div>'
        f'<div class="strip">{figures}</div>{button}</div>'
    )


def compare_html(words: Words, pictures: Pictures) -> str:
    """Two strengths laid over each other, the first prompt's: a slider uncovers one of them."""
    if not pictures:
        return ""
    prompts, strengths = _axes(pictures)
    sources = {(picture["prompt"], picture["strength"]): picture["url"] for picture in pictures}
    urls = [[sources[prompt, strength] for strength in strengths] for prompt in prompts]
    first, second = 0, strengths.index(1.0) if 1.0 in strengths else len(strengths) - 1
    pick = "".join(
        f'<label>{_said(words(f"try_it.{side}"))} <select class="{side}">'
        + "".join(
            f'<option value="{n}"{" selected" if n == chosen else ""}>{_said(_strength(words, s))}</option>'
            for n, s in enumerate(strengths)
        )
        + "</select></label>"
        for side, chosen in (("before", first), ("after", second))
    )
    which = ""
    if len(prompts) > 1:
        options = "".join(
            f'<option value="{n}">{_said(prompt[:80])}</option>' for n, prompt in enumerate(prompts)
        )
        which = f'<label>{_said(words("try_it.picture"))} <select class="which">{options}</select></label>'
    alts = [
        words("try_it.picture_at", prompt=prompts[0], strength=f"{strengths[n]:g}") for n in (first, second)
    ]
    return (
        f'<div class="compare" data-urls="{_listed(urls)}"><div class="row">{pick}{which}</div><div class="pair">'
        f'<img class="under" src="{_said(urls[0][first])}" alt="{_said(alts[0])}"><img class="over" src="{_said(urls[0][second])}" alt="{_said(alts[1])}">'
        f'</div><div class="strength"><input type="range" class="reveal" min="0" max="100" value="50" aria-label="{_said(words("try_it.reveal"))}" '
        f'aria-valuetext="50%"></div></div>'
    )


def grid_html(words: Words, pictures: Pictures, key: str, choice: dict[str, Any]) -> str:
    """A row for each checkpoint, a column for each strength; a button under each picture marks it as the one."""
    if not pictures:
        return ""
    strengths = sorted({picture["strength"] for picture in pictures})
    cells = {(picture["step"], picture["strength"]): picture for picture in pictures}
    head = "".join(f'<th scope="col">{_said(_strength(words, strength))}</th>' for strength in strengths)
    rows = []
    for step in sorted({picture["step"] for picture in pictures}):
        row = ""
        for strength in strengths:
            picture = cells[step, strength]
            told = words("try_it.cell", step=step, strength=f"{strength:g}")
            is_it = choice.get("step") == step and choice.get("strength") == strength
            button = (
                f'<button type="button" class="plain choose" data-key="{_said(quote(key))}" data-step="{step}" data-strength="{strength:g}" '
                f'aria-pressed="{"true" if is_it else "false"}" aria-label="{_said(words("try_it.use_this"))}: {_said(told)}">'
                f"{_said(words('try_it.use_this'))}</button>"
                if strength
                else ""
            )
            row += f'<td><img loading="lazy" src="{_said(picture["url"])}" alt="{_said(told)}">{button}</td>'
        rows.append(f'<tr><th scope="row">{_said(words("try_it.step", step=step))}</th>{row}</tr>')
    chosen = words("try_it.is_chosen", step=choice["step"], value=f"{choice['strength']:g}") if choice else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_said(words("try_it.grid"))}"><table class="grid">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="told" role="status" data-silent="{_said(words("try_it.unreachable"))}">{_said(chosen)}</p>'
    )


def drawing_html(words: Words, drawing: Drawing | None) -> str:
    """How an open drawing stands, or why it has no pictures."""
    if drawing is None or drawing.state == "drawn":
        return ""
    if drawing.state == "failed":
        return f'<div role="alert" class="alert">{_said(drawing.message)}</div>'
    text = words(f"try_it.is_{drawing.state}", done=drawing.done, total=drawing.total)
    bar = f'<progress aria-label="{_said(words("try_it.drawing"))}" value="{drawing.done}" max="{max(1, drawing.total)}"></progress>'
    frame = f"/drawn/{drawing.id}/frame.png?at={drawing.done}"
    # There is none before the first step, nor of what a training draws between its own.
    glimpse = (
        f'<img class="glimpse" alt="{_said(words("try_it.rough_preview"))}" src="{frame}">'
        if drawing.frame
        else ""
    )
    return f'<div role="status">{_said(text)}</div>{bar if drawing.is_open else ""}{glimpse}'


def download_html(words: Words, entry: LoraEntry | None) -> str:
    """The file of a LoRA and its preferred strength."""
    if entry is None:
        return ""
    name, weight = f"{entry.stem}.safetensors", entry.label.weight
    told = _said(words("try_it.is_preferred", value=f"{weight:g}")) if weight is not None else ""
    return (
        f'<a class="download" href="/download/{_said(quote(entry.key))}" download="{_said(name)}">{_said(words("try_it.download", name=name))}</a>'
        f'<p class="hint">{told}</p>'
    )


def _axes(pictures: Pictures) -> tuple[list[str], list[float]]:
    return list(dict.fromkeys(picture["prompt"] for picture in pictures)), sorted(
        {picture["strength"] for picture in pictures}
    )


def _figure(prompt: str, urls: list[str], at: int) -> str:
    return f'<figure><img src="{_said(urls[at])}" data-sources="{_listed(urls)}" alt="{_said(prompt)}"><figcaption>{_said(prompt)}</figcaption></figure>'


def _strength(words: Words, strength: float) -> str:
    return words("try_it.base_itself") if strength == 0 else words("try_it.strength", value=f"{strength:g}")


def _listed(values: list[Any]) -> str:
    return _said(json.dumps(values, ensure_ascii=False))


def _said(text: str) -> str:
    return html.escape(text, quote=True)
