"""Unpacking of zip files from untrusted sources: member by member, with limits on what comes out.

The whole archive is refused if it is no zip, if members share bytes (Fifield 2019, "A better zip bomb") or if
there are too many members. Single members are refused if their name leads out of the folder, if they are
links, encrypted or archives themselves, or if they are too large.
"""

from __future__ import annotations

import contextlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.dataset.captions import one_line
from trainer.dataset.layout import is_hidden, order
from trainer.errors import DatasetError

ARCHIVES = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".cbz", ".cbr"})
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Bytes before the name of a member: in the header beside its data, and in the central directory.
_LOCAL_HEADER_BYTES, _DIRECTORY_ENTRY_BYTES = 30, 46
# End of central directory: signature, two disk numbers, members on this disk and in all, size and offset of
# the directory, length of the comment.
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE, _ZIP64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07"
_MAX_COMMENT_BYTES = 65_535
_ZIP64_LOCATOR_BYTES = 20
_CHUNK_BYTES = 1 << 16
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Limits on the unpacked content of an archive."""

    members: int = 5000
    member_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Member:
    """One file of an archive: unpacked at `path`, or refused for `reason`."""

    name: str  # to show: with its folders, as in the archive, but cut to 120 characters
    path: Path | None
    reason: str = ""
    location: str = ""  # the whole name with / between folders


def extract_members(archive: Path, into: Path, limits: ArchiveLimits) -> Iterator[Member]:
    """Unpacks the files of an archive one after another; each is deleted when the next one is requested.

    Files get numbers as names, so that no name of the archive reaches the file system. The caller can move
    them.

    Raises:
        DatasetError: the whole archive is refused, or its content exceeds `limits.total_bytes`.
    """
    with _open(archive, limits) as opened:
        files = [info for info in opened.infolist() if not info.is_dir()]
        infos = [info for info in files if not _is_clutter(_location(info))]
        infos.sort(key=lambda info: order(_location(info)))
        _check_overlaps(archive, opened.infolist())
        bytes_left = limits.total_bytes
        for number, info in enumerate(infos):
            name = display_name(_location(info))
            reason = _reason_to_refuse(info)
            if reason:
                yield Member(name, None, reason)
                continue
            target = into / f"{number:05d}{PurePosixPath(name).suffix[:10]}"
            try:
                bytes_left -= _extract(opened, info, target, min(limits.member_bytes, bytes_left))
            except _TooLarge:
                target.unlink(missing_ok=True)
                if limits.member_bytes >= bytes_left:
                    raise DatasetError(
                        f"{display_name(archive.name)} holds more than {limits.total_bytes // 1_000_000} MB; "
                        "send it in parts"
                    ) from None
                yield Member(name, None, f"is larger than {limits.member_bytes // 1_000_000} MB")
            except _DAMAGE:
                target.unlink(missing_ok=True)
                yield Member(name, None, "is damaged inside the zip")
            else:
                yield Member(name, target, location=_location(info))
                target.unlink(missing_ok=True)


def member_names(archive: Path, limits: ArchiveLimits) -> list[str]:
    """Returns the locations of the files that `extract_members` unpacks or refuses.

    Raises:
        DatasetError: the whole archive is refused.
    """
    with _open(archive, limits) as opened:
        return [_location(info) for info in opened.infolist() if not info.is_dir()]


def _location(info: zipfile.ZipInfo) -> str:
    """Returns the name of a member with / between folders.

    Archive Utility of macOS and other tools store UTF-8 without the flag that says so; `zipfile` reads such
    names as code page 437.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def display_name(name: str) -> str:
    """Returns a file name that is safe to show: one line of at most 120 characters."""
    return one_line(name)[:120] or "a file without a name"


def _open(archive: Path, limits: ArchiveLimits) -> zipfile.ZipFile:
    name = display_name(archive.name)
    _check_directory(archive, name, limits)
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        raise DatasetError(f"{name} can't be read as a zip; create it again") from None


def _check_directory(archive: Path, name: str, limits: ArchiveLimits) -> None:
    """Checks the number of members before `zipfile` reads the whole central directory into memory."""
    with archive.open("rb") as file:
        tail_bytes = _MAX_COMMENT_BYTES + _END.size + _ZIP64_LOCATOR_BYTES
        file.seek(max(0, archive.stat().st_size - tail_bytes))
        tail = file.read()
    end = tail.rfind(_END_SIGNATURE)
    if end < 0 or len(tail) - end < _END.size:
        raise DatasetError(f"{name} can't be read as a zip; create it again")
    _, _, _, _, count, directory_bytes, _, _ = _END.unpack_from(tail, end)
    # Zip64 is for more than 65,535 members or 4 GB, which is beyond the limits in any case.
    is_zip64 = _ZIP64_SIGNATURE in tail[max(0, end - _ZIP64_LOCATOR_BYTES) : end]
    longest_directory = limits.members * (_DIRECTORY_ENTRY_BYTES + 1024)
    if is_zip64 or count > limits.members or directory_bytes > longest_directory:
        raise DatasetError(f"{name} holds more than {limits.members} files; send it in parts")


def _check_overlaps(archive: Path, infos: list[zipfile.ZipInfo]) -> None:
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise DatasetError(
                f"{display_name(archive.name)} is damaged: its files share the same bytes; create it again"
            )
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


def _is_clutter(name: str) -> bool:
    """Returns whether a file is hidden or was added by an operating system."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return bool(parts) and is_hidden("/".join(parts))


def _reason_to_refuse(info: zipfile.ZipInfo) -> str:
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
        return "uses a compression method that is not supported; make an ordinary zip"
    return ""


class _TooLarge(Exception):
    """Raised when a member is larger than allowed."""


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, max_bytes: int) -> int:
    """Writes one member to `target` and returns its size. Counts the bytes, since the sizes in headers can be
    false.
    """
    count = 0
    with opened.open(info) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            count += len(chunk)
            if count > max_bytes:
                raise _TooLarge
            file.write(chunk)
    return count
