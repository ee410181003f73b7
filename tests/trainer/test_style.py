"""The README's training: the style grows with the strength, and images still show their prompt's subject."""

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
def images(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> dict[float, np.ndarray]:
    """Images of concepts outside the sample set, (n, 128, 128, 3) uint8 by strength."""
    home = tmp_path_factory.mktemp("style")
    (home / ".cache").symlink_to(warm_cache)
    # Checkpoints, thumbnails and large samples would only take time.
    options = (
        "--sample-prompt",
        "a star --w 64 --h 64 --s 1",
        "--set",
        "checkpoint_every=1000",
        "--set",
        "thumbnail=none",
    )
    trainer("train", INK, "--preset", "style", "--precision", "fp32", "--output", home / "ink", *options)
    prompts = [word for concept in CONCEPTS for word in ("--prompt", f"{concept}, ink style")]
    trainer(
        "preview", home / "ink" / "ink.safetensors", *prompts, "--seed", "7", "--out-dir", home / "images"
    )
    files = {s: [home / "images" / f"p{p:02d}_s{s:.2f}.png" for p in range(len(CONCEPTS))] for s in STRENGTHS}
    return {s: np.stack([np.asarray(Image.open(path)) for path in paths]) for s, paths in files.items()}


def test_saturation_falls_as_the_strength_of_the_ink_style_grows(images: dict[float, np.ndarray]):
    values = [saturation(images[strength]) for strength in STRENGTHS]
    assert values[0] > 0.1, "the base generates images in colour"
    assert all(after <= before + 0.005 for before, after in itertools.pairwise(values)), values
    assert values[-1] <= 0.3 * values[0], values


def test_an_image_at_full_strength_is_neither_blank_nor_black(images: dict[float, np.ndarray]):
    for image in images[1.0]:
        dark = float((image.mean(axis=-1) < 128).mean())
        assert 0.02 < dark < 0.9
