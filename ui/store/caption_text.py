"""Statistics of caption texts: tag counts, tags that are joined to the trigger word, and the number of tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from trainer.dataset.captions import one_line

WINDOW_TOKENS = 75  # of a caption that one window of CLIP's text encoders holds, without start and end
_FIRST_WIDE = (
    0x2E80  # code point from which on scripts are written without spaces, such as Chinese and Japanese
)


def tag_counts(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Returns tags (texts between commas) with the number of captions that have them, the most frequent first."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({tag.strip() for tag in caption.split(",")} - {""})
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].casefold()))


def fused_tags(captions: Iterable[str], trigger: str) -> list[tuple[str, int]]:
    """Returns tags with more than the trigger word in them, such as `inkstyle cat` and `inkstylecat`, with their counts.

    Sentences that have the trigger word as a word of its own are left out.
    """
    word = one_line(trigger).casefold()
    if not word:
        return []
    as_word = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    fused = []
    for tag, count in tag_counts(captions):
        low = tag.casefold()
        is_sentence = len(low.split()) > len(word.split()) + 4 and as_word.search(low)
        if word in low and low != word and not is_sentence:
            fused.append((tag, count))
    return fused


def estimate_tokens(caption: str) -> int:
    """Estimates the number of CLIP tokens in a caption without loading a tokenizer.

    A short word has one token and a long one two or three, a digit or punctuation mark one, a letter of a script without
    spaces about two.
    """
    tokens = 0
    for part in re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", caption):
        wide = sum(ord(letter) >= _FIRST_WIDE for letter in part)
        narrow = len(part) - wide
        tokens += 2 * wide + (max(1, -(-(narrow - 1) // 6)) if narrow else 0)
    return tokens
