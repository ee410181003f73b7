"""Editing of the metadata of a .safetensors LoRA: the bytes of the tensors stay as they are. Without torch.

kohya computes hashes over a file with the `ss_*` metadata alone (trainer/lora_file/metadata.py). The hash of
the tensors does not change here. `sshs_legacy_hash` is that of the 64 KiB from 1 MiB on, so it changes with
the length of the header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.atomic_files import replacing
from trainer.config import is_text
from trainer.errors import LoraFileError
from trainer.headers.lora import lora_path, recognise
from trainer.headers.safetensors import Header

_CHUNK = 1 << 20
MAX_TEXT = 2000  # characters of one entry
_ENTRIES = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "licence": "modelspec.license",
    "description": "modelspec.description",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
}
_WEIGHT = "modelspec.lora_default_weight"  # SwarmUI reads it
_OWN_WORK = "impasto.own_work"


@dataclass(frozen=True, kw_only=True)
class Label:
    """Entries for the people who use a LoRA, apart from how it was trained.

    Attributes:
        weight: the strength that its maker prefers.
        own_work: True if it was trained on the maker's own pictures alone.
    """

    title: str = ""
    author: str = ""
    licence: str = ""
    description: str = ""
    tags: str = ""
    trigger: str = ""
    weight: float | None = None
    own_work: bool = False

    @staticmethod
    def of(metadata: Mapping[str, str]) -> Label:
        """The label in the metadata of a file; entries of another form are ignored."""
        texts = {name: metadata.get(key, "") for name, key in _ENTRIES.items()}
        try:
            weight = round(float(metadata[_WEIGHT]), 4) if _WEIGHT in metadata else None
        except ValueError:
            weight = None
        if weight is not None and not math.isfinite(weight):
            weight = None
        return Label(**texts, weight=weight, own_work=metadata.get(_OWN_WORK) == "true")

    def changes(self) -> dict[str, str | None]:
        """The label as changes of metadata for `relabel`.

        The usage hint has the trigger and the weight in words, for tools that show nothing else.
        """
        hints = [
            f"Put {self.trigger!r} in the prompt." if self.trigger else "",
            f"Strength {self.weight:g}." if self.weight is not None else "",
        ]
        texts: dict[str, str | None] = {key: getattr(self, name) or None for name, key in _ENTRIES.items()}
        return texts | {
            _WEIGHT: None if self.weight is None else f"{self.weight:g}",
            _OWN_WORK: "true" if self.own_work else None,
            "modelspec.usage_hint": " ".join(filter(None, hints)) or None,
        }


def checked(label: Label) -> Label:
    """The label without spaces around its texts.

    Raises:
        LoraFileError: a text is too long or can't be printed, or the weight is out of range.
    """
    texts = {name: getattr(label, name).strip() for name in _ENTRIES}
    for name, text in texts.items():
        if len(text) > MAX_TEXT:
            raise LoraFileError(f"{name} has at most {MAX_TEXT} characters; shorten it")
        if not is_text(text):
            raise LoraFileError(f"{name} holds characters that are no text; type it again")
    if label.weight is not None and not -2 <= label.weight <= 2:
        raise LoraFileError("a strength is a number from -2 to 2")
    return dataclasses.replace(label, **texts)


def relabel(path: Path, changes: Mapping[str, str | None]) -> dict[str, str]:
    """Changes metadata of a LoRA file, completely or not at all; returns all metadata of the new file.

    Args:
        changes: new values by key; None removes an entry.

    Raises:
        LoraFileError: the file is no LoRA, or the new file can't be written.
    """
    path = lora_path(path)
    header = recognise(path)
    entries = {**header.metadata, **changes}
    metadata = {key: value for key, value in entries.items() if value is not None}
    if "sshs_legacy_hash" in header.metadata:
        metadata["sshs_legacy_hash"] = _legacy_hash(path, header, metadata)
    try:
        with replacing(path) as temporary, path.open("rb") as old, temporary.open("wb") as new:
            new.write(header_bytes(header, metadata))
            old.seek(header.start)
            while data := old.read(_CHUNK):
                new.write(data)
    except OSError as error:
        raise LoraFileError(f"{path.name} could not be written ({error.strerror}); it is unchanged") from None
    return metadata


def header_bytes(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The header of a file with the same tensors and other metadata, as the safetensors library writes it.

    Tensors are in order of their bytes; spaces at the end make the length a multiple of 8.
    """
    tensors = sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].end))
    text: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, tensor in tensors:
        offsets = [tensor.start - header.start, tensor.end - header.start]
        text[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    data = json.dumps(text, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data


def _legacy_hash(path: Path, header: Header, metadata: Mapping[str, str]) -> str:
    """kohya's short hash of the file as it would be with the `ss_*` metadata alone."""
    first, length = 0x100000, 0x10000
    head = header_bytes(header, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    with path.open("rb") as file:
        file.seek(header.start + max(0, first - len(head)))
        rest = file.read(length)
    return hashlib.sha256((head[first:] + rest)[:length]).hexdigest()[:8]
