"""Metadata of a baked model: its own title, date and hashes in place of those of its base.

Entries that also describe the baked model (architecture, prediction type, author, licence) stay. A file of a
diffusers folder that states none of the replaced entries stays as it is.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainer.errors import BaseError
from trainer.headers.edit_metadata import header_bytes
from trainer.headers.safetensors import Header, read_header

_CHUNK = 1 << 20
_HASH = "modelspec.hash_sha256"
_TENSOR_HASH, _LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
# Entries about the base alone; a picture or hash of the base would be taken for one of the baked model.
_OF_BASE = (
    _HASH,
    _TENSOR_HASH,
    _LEGACY_HASH,
    "modelspec.thumbnail",
    "modelspec.title",
    "modelspec.merged_from",
)


@dataclass(frozen=True)
class BakedModel:
    """The names that the metadata of a baked model states."""

    title: str
    base: str
    lora: str

    def metadata(self, base: Mapping[str, str]) -> dict[str, str]:
        """Metadata from that of the base, with a hash of zeros until the tensors are written."""
        stays = {key: value for key, value in base.items() if key not in _OF_BASE}
        if "ss_output_name" in stays:
            stays["ss_output_name"] = self.title
        return {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-xl-v1-base",
            "modelspec.implementation": "sgm",
            "format": "pt",
            **stays,
            "modelspec.title": self.title,
            "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
            "modelspec.merged_from": f"{self.base}, {self.lora}",
            _HASH: f"0x{0:064x}",
            **({_TENSOR_HASH: f"{0:064x}"} if _TENSOR_HASH in base else {}),
        }


def states_another_model(file: Path) -> bool:
    """True if the header of a file has a title or hash, wrong after a change of its tensors."""
    return any(key in _OF_BASE for key in read_header(file, BaseError).metadata)


def copy_with_metadata(source: Path, target: Path, model: BakedModel) -> None:
    """Copies a .safetensors file with the metadata of a baked model; the bytes of its tensors stay."""
    header = read_header(source, BaseError)
    target.unlink(missing_ok=True)  # a copy of a read-only file can't be opened for writing
    with source.open("rb") as old, target.open("wb") as new:
        new.write(header_bytes(header, model.metadata(header.metadata)))
        old.seek(header.start)
        shutil.copyfileobj(old, new, _CHUNK)


def write_hash(file: Path) -> None:
    """Replaces the zeros in a header by the SHA-256 of the bytes of all tensors; the length stays."""
    header = read_header(file, BaseError)
    digest = _tensor_hash(file, header)
    values = {_HASH: f"0x{digest}", _TENSOR_HASH: digest}
    metadata = {key: values.get(key, value) for key, value in header.metadata.items()}
    with file.open("r+b") as stream:
        stream.write(header_bytes(header, metadata))


def _tensor_hash(file: Path, header: Header) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(header.start)
        while data := stream.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
