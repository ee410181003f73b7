"""The README's promise: the style grows with the strength, and images still show their prompt's subject."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import INK, trainer
from tools.assess_base import saturation

# None of these is in the sample set.
CONCEPTS = ("a red apple", "a pear", "a frog", "a snail", "a tractor", "a lady beetle")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> dict[float, np.ndarray]:
    """The README's training and preview on concepts it never saw: (n, 128, 128, 3) uint8 by strength."""
    home = tmp_path_factory.mktemp("style")
    (home / ".cache").symlink_to(warm_cache)
    # All that is not learning is left out.
    least = (
        "--sample-prompt",
        "a star --w 64 --h 64 --s 1",
        "--set",
        "checkpoint_every=1000",
        "--set",
        "thumbnail=none",
    )
    trainer("train", INK, "--preset", "style", "--precision", "fp32", "--output", home / "ink", *least)
    prompts = [word for concept in CONCEPTS for word in ("--prompt", f"{concept}, ink style")]
    trainer("preview", home / "ink" / "ink.safetensors", *prompts, "--seed", "7", "--out-dir", home / "drawn")
    files = {s: [home / "drawn" / f"p{p:02d}_s{s:.2f}.png" for p in range(len(CONCEPTS))] for s in STRENGTHS}
    return {s: np.stack([np.asarray(Image.open(path)) for path in paths]) for s, paths in files.items()}


def test_colour_leaves_as_the_ink_style_comes_in(drawn: dict[float, np.ndarray]):
    left = [saturation(drawn[strength]) for strength in STRENGTHS]
    assert left[0] > 0.1, "the base draws in colour"
    assert all(after <= before + 0.005 for before, after in itertools.pairwise(left)), left
    assert left[-1] <= 0.3 * left[0], left


def test_the_drawing_at_full_strength_is_still_there(drawn: dict[float, np.ndarray]):
    for picture in drawn[1.0]:
        dark = float((picture.mean(axis=-1) < 128).mean())
        assert 0.02 < dark < 0.9, "neither blank paper nor a black page"
