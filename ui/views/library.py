"""HTML of the Library: cards and messages. The metadata of a file can come from a stranger. No gradio."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from ui.store.library import Library, LoraEntry
from ui.store.lora_pictures import card_sample
from ui.text import Words
from ui.views.html import element, escape, page_url, text_element


def cards_html(words: Words, library: Library, entries: Sequence[LoraEntry]) -> str:
    """Returns a card for each LoRA."""
    if not entries:
        return text_element("p", words("library.empty"), class_="hint")
    return element("ul", "".join(_card(words, library, entry) for entry in entries), class_="shelf")


def _card(words: Words, library: Library, entry: LoraEntry) -> str:
    label, path = entry.label, quote(entry.key)
    title = label.title or entry.name
    has_picture = bool(card_sample(library, entry.key)) or "modelspec.thumbnail" in entry.metadata
    if has_picture:
        picture = element(
            "img",
            src=page_url(f"/cover/{path}?v={entry.file.stat().st_mtime_ns}"),
            alt=words("library.picture_of", name=title),
            width=192,
            height=192,
            loading="lazy",
        )
    else:
        picture = text_element("div", words("library.no_picture"), class_="blank")
    origin = words(f"library.origin_{entry.origin}", of=", ".join(entry.made_from)) if entry.origin else ""
    author = f" · {label.author}" if label.author else ""
    parts = [text_element("h3", title), text_element("p", origin + author, class_="hint")]
    if entry.problem:
        parts.append(text_element("p", entry.problem, role="alert", class_="alert"))
    if label.description:
        parts.append(text_element("p", label.description, class_="about"))
    parts.append(_attributes(words, entry))
    if label.own_work:
        parts.append(text_element("p", words("library.own_work"), class_="hint"))
    parts.append(_links(words, entry, path, has_picture))
    return element("li", picture + element("div", "".join(parts)), class_="lora")


def _attributes(words: Words, entry: LoraEntry) -> str:
    label = entry.label
    attributes = {
        "trigger": label.trigger,
        "weight": f"{label.weight:g}" if label.weight is not None else "",
        "base": entry.base,
        "licence": label.licence,
        "made": datetime.fromtimestamp(entry.created_at, UTC).astimezone().strftime("%Y-%m-%d"),
        "size": format_size(entry.file.stat().st_size),
        "compatible_with": ", ".join(entry.compatible_tools),
    }
    rows = "".join(
        text_element("dt", words(f"library.{name}")) + text_element("dd", value)
        for name, value in attributes.items()
        if value
    )
    return element("dl", rows)


def _links(words: Words, entry: LoraEntry, path: str, has_picture: bool) -> str:
    name = f"{entry.stem}.safetensors"
    download = text_element(
        "a",
        words("try_it.download", name=name),
        class_="download",
        href=page_url(f"/download/{path}"),
        download=name,
    )
    kinds = {"json": "sidecar_json", "png": "sidecar_png", "zip": "zip"}
    if not has_picture:
        del kinds["png"]
    others = "".join(
        text_element(
            "a",
            words(f"library.{key}"),
            href=page_url(f"/download/{path}/{kind}"),
            download=f"{entry.stem}.{kind}",
        )
        for kind, key in kinds.items()
    )
    return element("p", download, class_="links") + element("p", others, class_="links")


def messages_html(lines: Sequence[str]) -> str:
    """Returns what has been done, a paragraph for each line."""
    if not lines:
        return ""
    return element("div", "".join(text_element("p", line) for line in lines), role="status")


def problems_html(lines: Sequence[str]) -> str:
    """Returns what has failed, as an alert with a list."""
    if not lines:
        return ""
    listed = element("ul", "".join(text_element("li", line) for line in lines))
    return element("div", listed, role="alert", class_="alert")


def question_html(text: str) -> str:
    """Returns the question that the artist confirms before something is deleted."""
    return element("p", escape(text), role="alert", class_="alert")


def format_size(size_bytes: int) -> str:
    """Returns a file size in GB, MB or kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{max(1, round(size_bytes / 1e3)) if size_bytes else 0} kB"
