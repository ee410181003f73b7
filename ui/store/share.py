"""Files that are shared with a LoRA: the sidecars of A1111 and ComfyUI, a model card, and a zip with everything.

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
from ui.store.lora_pictures import card_sample, embedded_picture, samples

_CHUNK = 1 << 20
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)  # of every member, so that the same files make the same zip
# Licences with a name on the hub (https://huggingface.co/docs/hub/repositories-licenses); others are "other" with a text.
_LICENCES = frozenset(
    [
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
    ]
)
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_HUB_NAMES = {"sdxl_base_v1-0": _SDXL, "sd_xl_base_1.0": _SDXL}  # of base models


def sidecar(entry: LoraEntry) -> bytes:
    """Returns A1111's user metadata of a LoRA (extensions-builtin/Lora/ui_edit_user_metadata.py)."""
    label = entry.label
    notes = [
        f"By {label.author}." if label.author else "",
        f"Licence: {label.licence}." if label.licence else "",
    ]
    metadata = {
        "description": label.description,
        "sd version": "SDXL",
        "activation text": label.trigger,
        "preferred weight": label.weight or 0,  # 0 is A1111's value for none
        "negative text": "",
        "notes": " ".join(filter(None, notes)),
    }
    return json.dumps(metadata, indent=4, ensure_ascii=False).encode()


def preview(library: Library, key: str) -> bytes | None:
    """Returns the card's picture as PNG; None without one. Raises RunError."""
    sample = card_sample(library, key)
    if sample:
        return sample.read_bytes()
    picture = embedded_picture(library, key)
    if picture is None:
        return None
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def model_card(entry: LoraEntry, images: list[str]) -> str:
    """Returns README.md: metadata for the hub as YAML between lines of dashes, and the same for readers.

    Args:
        images: names of files in `images/`.
    """
    label, licence = entry.label, entry.label.licence.strip().lower()
    is_known = licence in _LICENCES
    metadata: dict[str, object] = {
        "license": licence if is_known else "other" if licence else None,
        "license_name": None if is_known or not licence else label.licence,
        "base_model": _HUB_NAMES.get(entry.base, entry.base) or None,
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["text-to-image", "stable-diffusion-xl", "lora", "template:sd-lora", *_tags(label.tags)],
        "instance_prompt": label.trigger or None,
    }
    # JSON is valid YAML. It quotes every text, so that no title or trigger word can add a field of its own.
    head = [f"{name}: {_json(value)}" for name, value in metadata.items() if value is not None]
    lines = ["---", *head, "---", "", f"# {_plain(label.title or entry.name)}", ""]
    if label.description:
        lines += [_plain(label.description), ""]
    fields = {
        "Trigger word": f"`{_plain(label.trigger)}`" if label.trigger else "",
        "Preferred strength": f"{label.weight:g}" if label.weight is not None else "",
        "Base model": _plain(entry.base),
        "Author": _plain(label.author),
        "Licence": _plain(label.licence),
        "Made from": "the author's own work" if label.own_work else "",
        "Compatible with": ", ".join(entry.compatible_tools),
    }
    lines += [f"- {name}: {value}" for name, value in fields.items() if value]
    lines += ["", f"File: `{entry.stem}.safetensors`, made with Impasto.", ""]
    lines += [f"![picture {number}](images/{name})" for number, name in enumerate(images, start=1)]
    return "\n".join(lines).rstrip() + "\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def _plain(text: str) -> str:
    """Escapes a text for Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def zip_members(library: Library, key: str) -> Iterator[tuple[str, Path | bytes]]:
    """Yields the zip's members as (name, a file or its bytes). Raises RunError."""
    entry, images = library.entry(key), samples(library, key)
    yield f"{entry.stem}.safetensors", entry.file
    yield f"{entry.stem}.json", sidecar(entry)
    picture = preview(library, key)
    if picture:
        yield f"{entry.stem}.png", picture
    yield "README.md", model_card(entry, [path.name for path in images]).encode()
    for path in images:
        yield f"images/{path.name}", path


def zip_stream(members: Iterator[tuple[str, Path | bytes]]) -> Iterator[bytes]:
    """Yields a zip piece by piece, so that it is never completely in memory. Its members are compressed formats already."""
    buffer = _ZipBuffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            with archive.open(zipfile.ZipInfo(name, _ZIP_TIME), "w", force_zip64=True) as member:
                for data in _chunks(content):
                    member.write(data)
                    yield buffer.take()
    yield buffer.take()


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while data := file.read(_CHUNK):
            yield data


class _ZipBuffer(io.RawIOBase):
    """Holds the bytes that zipfile has written since the last `take`.

    It can't seek, so zipfile writes sizes and checksums after each member instead of returning to its header.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # pyright: ignore[reportArgumentType]  # a bytes-like object
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        """Returns and forgets the bytes."""
        data, self._pieces = b"".join(self._pieces), []
        return data
