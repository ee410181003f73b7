"""Recoloured training images with captions for their colours.

Emoji show each object in one colour only. Recoloured copies teach the base that captions decide colours, as
the images of SDXL's training did. None of them is grey or black and white, since that is the style of the
sample set (ink), which must be new to the base.
"""

from __future__ import annotations

import numpy as np

COLOURS = {
    "red": (214, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (235, 200, 30),
    "green": (50, 160, 60),
    "teal": (20, 150, 150),
    "blue": (40, 90, 210),
    "purple": (130, 60, 180),
    "pink": (235, 100, 160),
    "brown": (120, 75, 40),
}


def recolour(image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
    """Returns (image, words for its caption), such as "in blue" or "in red light".

    Args:
        image: (height, width, 3) uint8.
    """
    word = str(generator.choice(list(COLOURS)))
    colour = np.array(COLOURS[word], dtype=np.float32) / 255
    values = image.astype(np.float32) / 255
    kind = generator.choice(4, p=(0.45, 0.3, 0.15, 0.1))
    if kind == 0:
        values, words = tinted(values, colour), f"in {word}"
    elif kind == 1:
        values, words = values * (0.25 + 0.75 * colour), f"in {word} light"
    elif kind == 2:
        values, words = 1 - 0.4 * (1 - values), "pale"
    else:
        values, words = 1 - values, "negative"
    return (values * 255).round().astype(np.uint8), words


def tinted(values: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Returns an image by its brightness alone.

    From a dark shade over the colour to white, as a one-colour print.
    """
    brightness = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.stack([np.interp(brightness, (0.0, 0.5, 1.0), (0.2 * c, c, 1.0)) for c in colour], axis=-1)
