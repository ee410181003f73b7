"""Text of files that people bring: UTF-8, UTF-16 and UTF-32 with or without a byte order mark, legacy code pages.

    EF BB BF ...            UTF-8 with a byte order mark, as Notepad and PowerShell write
    FF FE ... / FE FF ...   UTF-16, as Notepad's "Unicode" and PowerShell's `>` write
    00 in every other byte  UTF-16 without a mark
    valid UTF-8             UTF-8
    anything else           a legacy code page, guessed by `trainer/legacy_encodings.py`

A guess can be wrong, so every reader of such a file reports it with `encoding_note`.
"""

from __future__ import annotations

import codecs
import io
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# UTF-32's little-endian mark begins with that of UTF-16, so it stands first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MIN_VALID_SHARE = 0.75  # of the non-ASCII characters, in UTF-8 with some damaged bytes


@dataclass(frozen=True)
class DecodedText:
    """The text of a file and how its bytes were read."""

    text: str
    encoding: str  # Python's name of the codec
    is_guess: bool = False  # the bytes allow other readings
    is_damaged: bool = False  # it has zero bytes, or U+FFFD for bytes that the encoding does not allow


def decode(data: bytes) -> DecodedText:
    """Returns the text of a file's bytes, without its byte order mark. Every input has a reading."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    if wide := _wide_encoding(data):
        return _decoded(data, wide)
    try:
        return DecodedText(data.decode("utf-8"), "utf-8", is_damaged=b"\0" in data)
    except UnicodeDecodeError:
        pass
    lenient = _decoded(data, "utf-8")
    others = sum(not letter.isascii() for letter in lenient.text)
    if 1 - lenient.text.count("\ufffd") / others >= _MIN_VALID_SHARE:
        return lenient
    from trainer.legacy_encodings import guess  # its tables are needed only for such files

    text, encoding = guess(data)
    return DecodedText(text, encoding, is_guess=True)


def read_text(path: Path) -> DecodedText:
    """Returns the text of a file. Raises OSError."""
    return decode(path.read_bytes())


def read_toml_file(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file in any of these encodings.

    Raises:
        OSError: the file can't be read.
        tomllib.TOMLDecodeError: it is not TOML.
    """
    return tomllib.loads(read_text(path).text.replace("\r\n", "\n"))


def encoding_note(name: str, decoded: DecodedText) -> str | None:
    """Returns a sentence for the user when a file's text can be wrong, and None for Unicode."""
    if decoded.is_damaged:
        return f"{name} has bytes that are no text in {decoded.encoding.upper()}; correct its text and save it as UTF-8"
    if decoded.is_guess:
        return f"{name} is not UTF-8 and was read as {encoding_title(decoded.encoding)}; {_REMEDY}"
    return None


def encoding_notes(files: Iterable[tuple[str, Path]]) -> list[str]:
    """Returns one sentence for each legacy encoding among some files, with the names of the first ones.

    Args:
        files: (name for the sentence, path) of each.

    Files that can't be read are passed over.
    """
    by_encoding: dict[str, list[str]] = {}
    notes: list[str] = []
    for name, path in files:
        try:
            decoded = read_text(path)
        except OSError:
            continue
        if decoded.is_guess:
            by_encoding.setdefault(decoded.encoding, []).append(name)
        elif note := encoding_note(name, decoded):
            notes.append(note)
    for encoding, names in by_encoding.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        was = "is" if len(names) == 1 else "are"
        notes.append(f"{shown} {was} not UTF-8; read as {encoding_title(encoding)}; {_REMEDY}")
    return notes


def escape_unprintable_output() -> None:
    """Lets stdout and stderr escape characters that the terminal's encoding lacks, instead of failing.

    Piped output on Windows has a legacy code page, and names and captions can be in any script.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


_REMEDY = "if letters are wrong, save as UTF-8"


def encoding_title(encoding: str) -> str:
    """Returns the name of an encoding for a sentence, such as `Shift-JIS (cp932)`."""
    from trainer.legacy_encodings import TITLES

    return TITLES.get(encoding, encoding.upper())


def _decoded(data: bytes, encoding: str) -> DecodedText:
    text = data.decode(encoding, errors="replace")
    return DecodedText(text, encoding, is_damaged="\ufffd" in text)


def _wide_encoding(data: bytes) -> str | None:
    """Returns the encoding of UTF-16 or UTF-32 without a mark; None for other data.

    Text in these encodings has zero bytes at fixed places, because almost every text has spaces, commas or
    line ends. Text of any other encoding has no zero byte; where one is in valid UTF-8, it is damaged UTF-8
    unless at least a quarter of the bytes are zero, as in UTF-16 of Latin letters.
    """
    if b"\0" not in data or len(data) % 2:
        return None
    if data.count(0) < len(data) / 4 and _is_utf_8(data):
        return None
    candidates = ["utf-16-le", "utf-16-be"]
    if len(data) % 4 == 0:
        candidates = ["utf-32-le", "utf-32-be", *candidates]
    # The right byte order gives spaces, commas and letters where the wrong one gives rare characters.
    readings: list[tuple[float, str]] = []
    for encoding in candidates:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            readings.append((sum(letter.isascii() for letter in text) / len(text), encoding))
    return max(readings, key=lambda reading: reading[0])[1] if readings else None


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
