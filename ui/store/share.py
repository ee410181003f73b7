"""What goes out with a LoRA: the sidecars that A1111 and ComfyUI users expect, a model card, and all of it as one zip.

ink-300.safetensors
ink-300.json         A1111: activation text, preferred weight, description
ink-300.png          A1111, ComfyUI and InvokeAI: the picture on the card
README.md            a Hugging Face model card
images/p00_s1.00.png
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ui.store.library import Library, LoraEntry

_CHUNK = 1 << 20
# Licences as the hub names them (https://huggingface.co/docs/hub/repositories-licenses); any other is "other" with its own words.
_LICENCES = {
    "apache-2.0",
    "mit",
    "openrail",
    "openrail++",
    "creativeml-openrail-m",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0",
    "unlicense",
    "wtfpl",
    "bigscience-openrail-m",
}
_BASES = {
    "sdxl_base_v1-0": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd_xl_base_1.0": "stabilityai/stable-diffusion-xl-base-1.0",
}


def sidecar(entry: LoraEntry) -> bytes:
    """A1111's user metadata of a LoRA (extensions-builtin/Lora/ui_edit_user_metadata.py)."""
    label = entry.label
    facts = {
        "description": label.description,
        "sd version": "SDXL",
        "activation text": label.trigger,
        "preferred weight": label.weight or 0,  # 0: A1111's own default
        "negative text": "",
        "notes": " ".join(
            filter(
                None,
                [
                    f"By {label.author}." if label.author else "",
                    f"Licence: {label.licence}." if label.licence else "",
                ],
            )
        ),
    }
    return json.dumps(facts, indent=4, ensure_ascii=False).encode()


def preview(library: Library, key: str) -> bytes | None:
    """The card's picture as PNG; None where there is none."""
    found = library.picture(key)
    if found:
        return found.read_bytes()
    cover = library.cover(key)
    if cover is None:
        return None
    data = io.BytesIO()
    cover.save(data, format="PNG")
    return data.getvalue()


def card(entry: LoraEntry, images: list[str]) -> str:
    """README.md: what the hub reads between the lines of dashes, and the same for people."""
    label, licence = entry.label, entry.label.licence.strip().lower()
    known = licence in _LICENCES
    facts: dict[str, object] = {
        "license": licence if known else "other" if licence else None,
        "license_name": None if known or not licence else label.licence,
        "base_model": _BASES.get(entry.base, entry.base) or None,
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["text-to-image", "stable-diffusion-xl", "lora", "template:sd-lora", *_tags(label.tags)],
        "instance_prompt": label.trigger or None,
    }
    # JSON is YAML: whatever stands in a name can't break out of it.
    head = [
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in facts.items()
        if value is not None
    ]
    title = label.title or entry.name
    lines = ["---", *head, "---", "", f"# {_plain(title)}", ""]
    lines += [_plain(label.description), ""] if label.description else []
    told = {
        "Trigger word": f"`{_plain(label.trigger)}`" if label.trigger else "",
        "Preferred strength": f"{label.weight:g}" if label.weight is not None else "",
        "Base model": _plain(entry.base),
        "Author": _plain(label.author),
        "Licence": _plain(label.licence),
        "Made from": "the author's own work" if label.own_work else "",
        "Read whole by": ", ".join(entry.takes),
    }
    lines += [f"- {name}: {value}" for name, value in told.items() if value]
    lines += ["", f"File: `{entry.stem}.safetensors`, made with Impasto.", ""]
    lines += [f"![picture {number}](images/{name})" for number, name in enumerate(images, start=1)]
    return "\n".join(lines).rstrip() + "\n"


def _tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def _plain(text: str) -> str:
    """Text in Markdown as it was typed: no markup of a name becomes markup of a page."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def parts(library: Library, key: str) -> Iterator[tuple[str, Path | bytes]]:
    """Everything of the zip: (name, a file or its bytes)."""
    entry, images = library.entry(key), library.samples(key)
    yield f"{entry.stem}.safetensors", entry.file
    yield f"{entry.stem}.json", sidecar(entry)
    picture = preview(library, key)
    if picture:
        yield f"{entry.stem}.png", picture
    yield "README.md", card(entry, [path.name for path in images]).encode()
    for path in images:
        yield f"images/{path.name}", path


def zipped(found: Iterator[tuple[str, Path | bytes]]) -> Iterator[bytes]:
    """A zip as it grows, never whole in memory; its parts are compressed already."""
    out = _Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in found:
            with archive.open(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), "w", force_zip64=True) as member:
                for data in _chunks(content):
                    member.write(data)
                    yield out.taken()
    yield out.taken()


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while data := file.read(_CHUNK):
            yield data


class _Pipe(io.RawIOBase):
    """What was written and not yet taken; zipfile sees a stream that can't be wound back."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # pyright: ignore[reportArgumentType]
        self._waiting.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        data, self._waiting = b"".join(self._waiting), []
        return data
