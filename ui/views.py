"""What the page shows of a run, as HTML: every name and caption escaped here. No gradio."""

from __future__ import annotations

import html
import json
from typing import Any
from urllib.parse import quote


def strip_html(run: str, pictures: list[dict[str, Any]] | tuple[dict[str, Any], ...]) -> str:
    """One picture a prompt and a slider that swaps them all: 0 is the base model's own picture."""
    if not pictures:
        return '<p class="hint">When the training has ended, its pictures are here, at any strength.</p>'
    prompts = list(dict.fromkeys(p["prompt"] for p in pictures))
    strengths = sorted({p["strength"] for p in pictures})
    at = strengths.index(1.0) if 1.0 in strengths else len(strengths) - 1
    sources = {(p["prompt"], p["strength"]): picture_url(run, p) for p in pictures}
    figures = []
    for prompt in prompts:
        urls = [sources[prompt, strength] for strength in strengths]
        listed = html.escape(json.dumps(urls), quote=True)
        figures.append(
            f'<figure><img src="{urls[at]}" data-sources="{listed}" alt="{_said(prompt)}"><figcaption>{_said(prompt)}</figcaption></figure>'
        )
    return (
        f'<div class="tryout"><div class="strength"><input type="range" aria-label="Strength" min="0" max="{len(strengths) - 1}" '
        f'step="1" value="{at}" data-strengths="{html.escape(json.dumps(strengths))}" aria-valuetext="{strengths[at]:g}">'
        f'<output>Strength {strengths[at]:g}</output></div><div class="strip">{"".join(figures)}</div></div>'
    )


def download_html(run: str, file: str | None) -> str:
    if not file:
        return ""
    return f'<a class="download" href="/download/{quote(run)}" download="{html.escape(file, quote=True)}">Download {html.escape(file)}</a>'


def picture_url(run: str, picture: dict[str, Any]) -> str:
    """With the time it was made: a browser keeps pictures, and a continued run draws new ones under the same names."""
    return html.escape(f"/picture/{quote(run)}/{quote(picture['file'])}?v={picture.get('made', 0)}", quote=True)


def _said(text: str) -> str:
    return html.escape(text, quote=True)
