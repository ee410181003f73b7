"""What a .safetensors says of itself, written anew: other metadata over the same tensors, to the byte. Without torch.

Hashes as kohya computes them, over a file with only the `ss_*` metadata (trainer/lora_file/metadata.py): that of the
tensors stays; `sshs_legacy_hash` looks at 64 KiB from 1 MiB on, and so moves with the length of the header.
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
from trainer.headers.lora import recognise
from trainer.headers.safetensors import Header

_CHUNK = 1 << 20
MAX_TEXT = 2000  # characters of what is said of one thing
_PLACES = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "licence": "modelspec.license",
    "description": "modelspec.description",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
}
_WEIGHT, _OWN_WORK = "modelspec.lora_default_weight", "impasto.own_work"  # the first is read by SwarmUI


@dataclass(frozen=True, kw_only=True)
class Label:
    """What people are told of a LoRA, apart from how it was trained."""

    title: str = ""
    author: str = ""
    licence: str = ""
    description: str = ""
    tags: str = ""
    trigger: str = ""
    weight: float | None = None  # the strength that its maker prefers
    own_work: bool = False  # made from the maker's own pictures alone

    @staticmethod
    def of(metadata: Mapping[str, str]) -> Label:
        texts = {name: metadata.get(key, "") for name, key in _PLACES.items()}
        try:
            weight = round(float(metadata[_WEIGHT]), 4) if _WEIGHT in metadata else None
        except ValueError:
            weight = None
        fine = weight is not None and math.isfinite(weight)
        return Label(**texts, weight=weight if fine else None, own_work=metadata.get(_OWN_WORK) == "true")

    def changes(self) -> dict[str, str | None]:
        """For `relabel`. The usage hint says trigger and weight in words, for tools that show only that."""
        hints = [
            f"Put {self.trigger!r} in the prompt." if self.trigger else "",
            f"Strength {self.weight:g}." if self.weight is not None else "",
        ]
        said: dict[str, str | None] = {key: getattr(self, name) or None for name, key in _PLACES.items()}
        return said | {
            _WEIGHT: None if self.weight is None else f"{self.weight:g}",
            _OWN_WORK: "true" if self.own_work else None,
            "modelspec.usage_hint": " ".join(filter(None, hints)) or None,
        }


def checked(label: Label) -> Label:
    """The label, without spaces around its words. Raises LoraFileError for one that no file should carry."""
    texts = {name: getattr(label, name).strip() for name in _PLACES}
    for name, text in texts.items():
        if len(text) > MAX_TEXT:
            raise LoraFileError(f"{name} has at most {MAX_TEXT} characters; shorten it")
        if not is_text(text):
            raise LoraFileError(f"{name} holds characters that are no text; type it again")
    if label.weight is not None and not -2 <= label.weight <= 2:
        raise LoraFileError("a strength is a number from -2 to 2")
    return dataclasses.replace(label, **texts)


def relabel(path: Path, changes: Mapping[str, str | None]) -> dict[str, str]:
    """Changes metadata of a LoRA file, whole or not at all; all that it then says.

    Args:
        changes: None takes an entry out.

    Raises:
        LoraFileError: the file is no LoRA, or the disk does not take the new one.
    """
    header = recognise(path)
    facts = {**header.metadata, **changes}
    kept = {key: value for key, value in facts.items() if value is not None}
    if "sshs_legacy_hash" in header.metadata:
        kept["sshs_legacy_hash"] = _legacy_hash(path, header, kept)
    try:
        with replacing(path) as temporary, path.open("rb") as old, temporary.open("wb") as new:
            new.write(_header_bytes(header, kept))
            old.seek(header.start)
            while data := old.read(_CHUNK):
                new.write(data)
    except OSError as error:
        raise LoraFileError(f"{path.name} could not be written ({error.strerror}); it is as it was") from None
    return kept


def _header_bytes(header: Header, metadata: Mapping[str, str]) -> bytes:
    """As the safetensors library writes it: tensors in order of their bytes, padded to 8."""
    tensors = sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].end))
    text: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, tensor in tensors:
        offsets = [tensor.start - header.start, tensor.end - header.start]
        text[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    data = json.dumps(text, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data


def _legacy_hash(path: Path, header: Header, facts: Mapping[str, str]) -> str:
    first, length = 0x100000, 0x10000
    head = _header_bytes(header, {key: value for key, value in facts.items() if key.startswith("ss_")})
    with path.open("rb") as file:
        file.seek(header.start + max(0, first - len(head)))
        rest = file.read(length)
    return hashlib.sha256((head[first:] + rest)[:length]).hexdigest()[:8]
