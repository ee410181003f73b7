"""The most probable legacy code page of a text that is not Unicode.

Captions are short, often two words, so the statistics of a detector alone decide little. `guess` therefore
weighs the confidence of chardet against the marks of a wrong reading: words that mix scripts, symbols inside
words, capitals after small letters.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata

import chardet

# The code pages of Windows by language, and the two older Unix encodings that are still met.
TITLES = {
    "cp1252": "Western European (Windows-1252)",
    "cp932": "Japanese (Shift-JIS)",
    "gb18030": "Simplified Chinese (GB18030)",
    "big5hkscs": "Traditional Chinese (Big5)",
    "cp949": "Korean (cp949)",
    "cp1251": "Cyrillic (Windows-1251)",
    "cp1250": "Central European (Windows-1250)",
    "cp1253": "Greek (Windows-1253)",
    "cp1254": "Turkish (Windows-1254)",
    "cp1255": "Hebrew (Windows-1255)",
    "cp1256": "Arabic (Windows-1256)",
    "cp1257": "Baltic (Windows-1257)",
    "cp1258": "Vietnamese (Windows-1258)",
    "cp874": "Thai (Windows-874)",
    "euc_jis_2004": "Japanese (EUC-JP)",
    "koi8-r": "Russian (KOI8-R)",
    "latin-1": "Western European (Latin-1)",
}
_CANDIDATES = tuple(encoding for encoding in TITLES if encoding != "latin-1")
_SAMPLE = 4096  # bytes that decide; a caption has fewer, and a list of prompts is of one encoding
_UNKNOWN = 0.004  # confidence of an encoding that chardet does not list
_NO_MATCH = 0.1  # confidence with which chardet returns its default

# Scores are logarithms of a confidence, so 0.7 is a factor of 2. They were set by trial on captions of
# one to eight words in sixteen languages (tests/trainer/test_text_files.py).
_MIXED_WORD, _SYMBOL, _CAPITAL, _UNASSIGNED, _HALF_WIDTH = 2.0, 1.2, 1.5, 4.0, 1.0
_WESTERN, _JAPANESE = 0.7, 3.0

_SYMBOL_IN_WORD = re.compile(
    r"(?<=[^\d\s])[\u00a1-\u00bf]|[\u00a2-\u00ba\u00bc-\u00be](?=[^\W\d_])|[\u2500-\u25ff]"
)
_CAPITAL_IN_WORD = re.compile(
    r"[a-z\u00df-\u00f6\u00f8-\u00ff\u0430-\u044f][A-Z\u00c0-\u00d6\u00d8-\u00de\u0160\u017d\u0410-\u042f]"
)
_HALF_WIDTH_KATAKANA = re.compile(r"[\uff61-\uff9f]")
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "FULLWIDTH", "KATAKANA-HIRAGANA"}


def guess(data: bytes) -> tuple[str, str]:
    """Returns (text, codec) of the most probable reading; Latin-1, which reads all bytes, is the last resort."""
    sample = data[:_SAMPLE]
    confidence = _confidences(sample)
    readings: list[tuple[float, str]] = []
    for encoding in _CANDIDATES:
        text = _reading(sample, encoding, is_cut=len(data) > _SAMPLE)
        if text is not None:
            known = max(confidence.get(codecs.lookup(encoding).name, _UNKNOWN), 0.001)
            readings.append((math.log(known) + _score(text, encoding), encoding))
    encoding = max(readings)[1] if readings else "latin-1"
    return data.decode(encoding, errors="replace"), encoding


def _confidences(sample: bytes) -> dict[str, float]:
    """Returns chardet's confidence by codec; empty where it only returns its default."""
    found = chardet.detect_all(sample, include_encodings=_CANDIDATES, ignore_threshold=True)
    confidence: dict[str, float] = {}
    for result in found:
        if result["encoding"]:
            confidence[codecs.lookup(result["encoding"]).name] = float(result["confidence"])
    return {} if list(confidence.values()) == [_NO_MATCH] else confidence


def _reading(sample: bytes, encoding: str, *, is_cut: bool) -> str | None:
    """Returns the sample's text, or None where it has bytes that the encoding lacks."""
    try:
        # The cut can go through a character of several bytes, which is then waited for.
        return codecs.getincrementaldecoder(encoding)().decode(sample, final=not is_cut)
    except UnicodeError:
        return None


def _score(text: str, encoding: str) -> float:
    """Returns the logarithm of how much more or less probable the text makes its encoding."""
    mixed = _mixed_words(text)
    half_width = _HALF_WIDTH_KATAKANA.search(text)
    score = -_MIXED_WORD * mixed - _SYMBOL * len(_SYMBOL_IN_WORD.findall(text))
    score -= _CAPITAL * len(_CAPITAL_IN_WORD.findall(text))
    if any(unicodedata.category(letter) in ("Co", "Cn", "Cc") and letter not in "\r\n\t" for letter in text):
        score -= _UNASSIGNED
    if encoding == "cp1252":
        score += _WESTERN
    if encoding == "cp932":
        # By chance, few bytes are valid Shift-JIS. Half-width katakana are single bytes above 0xA0, as the
        # letters of all other code pages.
        score += -_HALF_WIDTH if half_width else _JAPANESE * (not mixed)
    return score


def _mixed_words(text: str) -> int:
    """Returns the number of words with letters of several scripts."""
    return sum(
        len({_script(letter) for letter in word if letter.isalpha()}) > 1 for word in re.findall(r"\w+", text)
    )


def _script(letter: str) -> str:
    if letter.isascii():
        return "LATIN"
    name = unicodedata.name(letter, "?").split()[0]
    return "CJK" if name in _EAST_ASIAN else name
