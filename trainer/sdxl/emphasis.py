"""Weights of the parts of a prompt, `(word:1.2)`, in the notation of A1111.

(word)      1.1 times         ((word))   1.21 times       [word]      1 / 1.1 times
(word:1.3)  1.3 times         \\(word\\)   literal brackets
"""

from __future__ import annotations

import re

_PIECE = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*[+-]?\d*\.?\d+\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
STEP = 1.1


def parse_emphasis(prompt: str) -> list[tuple[str, float]]:
    """Returns (text, weight) in order; neighbours of equal weight are joined.

    A bracket that is never closed applies to the rest of the prompt, as in A1111.
    """
    pieces: list[tuple[str, float]] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def scale(start: int, factor: float) -> None:
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    for match in _PIECE.finditer(prompt):
        piece = match[0]
        if piece.startswith("\\") and len(piece) == 2:
            pieces.append((piece[1], 1.0))
        elif piece == "(":
            open_round.append(len(pieces))
        elif piece == "[":
            open_square.append(len(pieces))
        elif piece.startswith(":") and len(piece) > 1 and open_round:
            scale(open_round.pop(), float(piece[1:-1]))
        elif piece == ")" and open_round:
            scale(open_round.pop(), STEP)
        elif piece == "]" and open_square:
            scale(open_square.pop(), 1 / STEP)
        else:
            pieces.append((piece, 1.0))
    for start in open_round:
        scale(start, STEP)
    for start in open_square:
        scale(start, 1 / STEP)
    return _joined(pieces) or [("", 1.0)]


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Joins neighbours of equal weight."""
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined
