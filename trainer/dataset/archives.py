"""Zip files from anyone: read member by member with every byte counted, never unpacked as they ask to be.

Refused whole: what is no zip, members that share bytes (Fifield 2019, "A better zip bomb"), too many members.
Refused one by one: names that lead elsewhere, links, locked members, archives inside, what is larger than it may be.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.dataset.captions import one_line
from trainer.errors import DatasetError

ARCHIVES = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".cbz", ".cbr"})
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER, _MEMBER_HEADER = (
    30,
    46,
)  # bytes before the name, beside the member and in the directory at the end
_END = struct.Struct(
    "<4s4H2LH"
)  # signature, two disk numbers, members here and in all, size and offset of the directory, comment
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """How much an archive may hold, unpacked."""

    members: int = 5000
    member_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Member:
    """One file of an archive: unpacked at `path`, or refused with a reason."""

    name: str  # with its folders, as the archive calls it
    path: Path | None
    reason: str = ""


def extract_members(archive: Path, into: Path, bounds: ArchiveLimits) -> Iterator[Member]:
    """Unpacks an archive's files one after another into names of our own; whoever takes one may move it away.

    Raises DatasetError when the archive as a whole can't be trusted or read.
    """
    with _opened(archive, bounds) as opened:
        wanted = [info for info in opened.infolist() if not info.is_dir() and not _is_clutter(info.filename)]
        _check_overlaps(archive, opened.infolist())
        left = bounds.total_bytes
        for number, info in enumerate(wanted):
            name = display_name(info.filename)
            reason = _refusal(info)
            if reason:
                yield Member(name, None, reason)
                continue
            target = into / f"{number:05d}{PurePosixPath(name).suffix[:10]}"
            try:
                left -= _copied(opened, info, target, min(bounds.member_bytes, left))
            except _TooLarge:
                target.unlink(missing_ok=True)
                if bounds.member_bytes >= left:
                    raise DatasetError(
                        f"{display_name(archive.name)} holds more than {bounds.total_bytes // 1_000_000} MB; send it in parts"
                    ) from None
                yield Member(name, None, f"is larger than {bounds.member_bytes // 1_000_000} MB")
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
                target.unlink(missing_ok=True)
                yield Member(name, None, "is damaged inside the zip")
            else:
                yield Member(name, target)
                target.unlink(missing_ok=True)


def display_name(name: str) -> str:
    """A member's name as it may be shown: one line, at most 120 characters."""
    return one_line(name)[:120] or "a file without a name"


def _opened(archive: Path, bounds: ArchiveLimits) -> zipfile.ZipFile:
    told = display_name(archive.name)
    _check_directory(archive, told, bounds)
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        raise DatasetError(f"{told} can't be read as a zip; make it anew") from None


def _check_directory(archive: Path, told: str, bounds: ArchiveLimits) -> None:
    """The list of members is read into memory at once, so its size is asked first."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 65_535 - _END.size - 20))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise DatasetError(f"{told} can't be read as a zip; make it anew")
    _, _, _, _, count, size, _, _ = _END.unpack_from(tail, at)
    if (
        b"PK\x06\x07" in tail[max(0, at - 20) : at]
        or count > bounds.members
        or size > bounds.members * (_MEMBER_HEADER + 1024)
    ):
        raise DatasetError(f"{told} holds more than {bounds.members} files; send it in parts")


def _check_overlaps(archive: Path, infos: list[zipfile.ZipInfo]) -> None:
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise DatasetError(
                f"{display_name(archive.name)} is damaged: its files share the same bytes; make it anew"
            )
        end = info.header_offset + _LOCAL_HEADER + info.compress_size


def _is_clutter(name: str) -> bool:
    """What operating systems add unasked."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "__MACOSX" in parts or (
        bool(parts)
        and ((parts[-1].startswith(".") and parts[-1] != "..") or parts[-1].lower() == "thumbs.db")
    )


def _refusal(info: zipfile.ZipInfo) -> str:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in info.filename or "\0" in info.orig_filename:
        return "has a name that leads out of the zip"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link, not a file"
    if info.flag_bits & 0x1:
        return "is locked with a password; make the zip without one"
    if path.suffix.lower() in ARCHIVES:
        return "is an archive inside the zip; unpack it first"
    if info.compress_type not in _METHODS:
        return "is packed in a way that is not read; make an ordinary zip"
    return ""


class _TooLarge(Exception):
    pass


def _copied(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Writes one member out; its bytes. What the archive says of sizes is not believed."""
    count = 0
    with opened.open(info) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            count += len(chunk)
            if count > most:
                raise _TooLarge
            file.write(chunk)
    return count
