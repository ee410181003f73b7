"""The Library's cards as HTML. What a file says of itself is a stranger's text: all of it is escaped. No gradio."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from ui.store.library import Library, LoraEntry
from ui.text import Words


def cards_html(words: Words, library: Library, entries: Sequence[LoraEntry]) -> str:
    if not entries:
        return f'<p class="hint">{_said(words("library.empty"))}</p>'
    return f'<ul class="shelf">{"".join(_card(words, library, entry) for entry in entries)}</ul>'


def _card(words: Words, library: Library, entry: LoraEntry) -> str:
    label, place = entry.label, _said(quote(entry.key))
    title = label.title or entry.name
    version = entry.file.stat().st_mtime_ns
    has_picture = library.picture(entry.key) or "modelspec.thumbnail" in entry.facts
    picture = (
        f'<img src="/cover/{place}?v={version}" alt="{_said(words("library.picture_of", name=title))}" width="192" height="192" loading="lazy">'
        if has_picture
        else f'<div class="blank">{_said(words("library.no_picture"))}</div>'
    )
    facts = {
        "trigger": label.trigger,
        "weight": f"{label.weight:g}" if label.weight is not None else "",
        "base": entry.base,
        "licence": label.licence,
        "made": datetime.fromtimestamp(entry.made, UTC).astimezone().strftime("%Y-%m-%d"),
        "size": size_words(entry.file.stat().st_size),
        "compatible_with": ", ".join(entry.takes),
    }
    rows = "".join(
        f"<dt>{_said(words(f'library.{name}'))}</dt><dd>{_said(value)}</dd>"
        for name, value in facts.items()
        if value
    )
    origin = words(f"library.origin_{entry.origin}", of=", ".join(entry.of)) if entry.origin else ""
    by = f" · {_said(label.author)}" if label.author else ""
    own_work = f'<p class="hint">{_said(words("library.own_work"))}</p>' if label.own_work else ""
    problem = f'<p role="alert" class="alert">{_said(entry.problem)}</p>' if entry.problem else ""
    about = f'<p class="about">{_said(label.description)}</p>' if label.description else ""
    return (
        f'<li class="lora">{picture}<div><h3>{_said(title)}</h3><p class="hint">{_said(origin)}{by}</p>{problem}{about}<dl>{rows}</dl>{own_work}'
        f"{_links(words, entry, place, bool(has_picture))}</div></li>"
    )


def _links(words: Words, entry: LoraEntry, place: str, has_picture: bool) -> str:
    stem = entry.stem
    parts = [("json", "sidecar_json"), *([("png", "sidecar_png")] if has_picture else []), ("zip", "zip")]
    more = "".join(
        f'<a href="/download/{place}/{part}" download="{_said(f"{stem}.{part}")}">{_said(words(f"library.{name}"))}</a>'
        for part, name in parts
    )
    name = f"{stem}.safetensors"
    return (
        f'<p class="links"><a class="download" href="/download/{place}" download="{_said(name)}">{_said(words("try_it.download", name=name))}</a></p>'
        f'<p class="links">{more}</p>'
    )


def size_words(size_bytes: int) -> str:
    """In the unit that people read."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{max(1, round(size_bytes / 1e3)) if size_bytes else 0} kB"


def _said(text: str) -> str:
    return html.escape(text, quote=True)
