"""The header of a .safetensors file, read without trusting it and without torch.

8 bytes: length of the header, little-endian; then JSON {name: {dtype, shape, data_offsets}, "__metadata__":
{...}}; then the tensors' bytes, without gaps.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.text_files import decode

MAX_HEADER = 100 << 20  # bytes; what the safetensors library itself allows
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}


@dataclass(frozen=True)
class Tensor:
    """Type, shape and place of a tensor: bytes `start` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Header of a file; the bytes of the tensors begin at `start`."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    start: int


def read_header(path: Path, error: type[TrainerError], *, most: int = MAX_HEADER) -> Header:
    """Reads the header of a file and compares it with the size of the file.

    Args:
        error: raised with a sentence for the user where the file is damaged or is no .safetensors.
        most: largest accepted header in bytes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= min(most, size - 8):
                raise error(_rejection(path, first))
            parsed = _json(file.read(length))
    except FileNotFoundError:
        raise error(f"{path} does not exist; give the path of a .safetensors file") from None
    except OSError as problem:
        raise error(f"{path.name} can't be read ({problem.strerror})") from None
    except (ValueError, RecursionError):
        raise error(f"{path.name} is not a .safetensors file; download or save it again") from None
    start = 8 + length
    tensors, metadata = _parsed(parsed, start)
    if tensors is None:
        raise error(f"{path.name} has a damaged header; download or save it again")
    end = _end(tensors, start)
    if end is None:
        raise error(
            f"{path.name} has a damaged header (tensors overlap or leave gaps); download or save it again"
        )
    if end != size:
        difference = f"{end - size:,} bytes are missing" if end > size else f"{size - end:,} bytes too many"
        raise error(f"{path.name} is not complete: {difference}; download it again")
    return Header(tensors, metadata, start)


def _json(text: bytes) -> Any:
    """A header as JSON; other programs write metadata in legacy code pages too. Raises ValueError."""
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        # The names of the tensors are ASCII and would hide the statistics of a short title.
        sample = b" ".join(re.findall(rb"[^\x00-\x7f][^\"]*", text))
        return json.loads(text.decode(decode(sample).encoding, "replace"))


def _metadata_text(value: Any) -> str:
    """A value of the metadata as text; nested JSON, which other programs write, as JSON.

    Half of a surrogate pair is valid JSON, but can't be printed or written again: U+FFFD stands for it.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rejection(path: Path, first: bytes) -> str:
    """A sentence for a file that does not begin as a .safetensors does."""
    if first.startswith((b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")):
        return (
            f"{path.name} is a pickle or zip file. A pickle can run programs when it is opened, so it is "
            "not; get the .safetensors version"
        )
    if first.startswith(b"GGUF"):
        return f"{path.name} is a GGUF file, which is not opened; get the .safetensors version"
    return f"{path.name} is not a .safetensors file, or only the beginning of one; download it again"


def _parsed(parsed: Any, start: int) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """(tensors, metadata) of a parsed header; (None, {}) for a damaged one."""
    if not isinstance(parsed, dict):
        return None, {}
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        return None, {}
    tensors = {}
    for name, entry in parsed.items():
        try:
            dtype, shape, (low, high) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            is_whole = all(type(number) is int and number >= 0 for number in (*shape, low, high))
            if not is_whole or low > high:
                return None, {}
            # Sizes of four-bit and other packed types are not compared; nothing here reads them.
            if dtype in BITS and math.prod(shape) * BITS[dtype] != 8 * (high - low):
                return None, {}
        except (KeyError, TypeError, ValueError):
            return None, {}
        tensors[name] = Tensor(str(dtype), shape, start + low, start + high)
    try:
        for name in tensors:
            name.encode()  # half of a surrogate pair can't be printed or written again
    except UnicodeEncodeError:
        return None, {}
    return tensors, {_metadata_text(key): _metadata_text(value) for key, value in metadata.items()}


def _end(tensors: dict[str, Tensor], start: int) -> int | None:
    """The end of the last tensor in bytes of the file; None when tensors overlap or leave gaps."""
    at = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != at:
            return None
        at = tensor.end
    return at
