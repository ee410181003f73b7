"""Rough pictures of what is being drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from tests.conftest import MODELS
from trainer.runs.draw_protocol import FRAME
from trainer.sampling.pipeline import WarmBase, generate_and_save
from trainer.sampling_config import SamplingConfig
from trainer.sdxl.base import open_base
from trainer.sdxl.latents import decode_images, encode_image, to_pixels


@pytest.fixture(scope="module")
def warm() -> WarmBase:
    return WarmBase(open_base("tiny-sdxl", MODELS), "fp32")


def test_a_rough_picture_has_the_colours_that_the_decoder_gives(warm: WarmBase):
    art = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(art)
    pen.ellipse((16, 16, 80, 80), fill="#d0302a")
    pen.rectangle((70, 60, 120, 120), fill="#2a50d0")
    latents = encode_image(warm.vae, to_pixels(art))[0] * warm.vae.config["scaling_factor"]
    rough = warm.latent_to_rgb.image(latents[0], 128)
    decoded = decode_images(warm.vae, latents)[0]
    assert rough.size == decoded.size

    def coarse(picture: Image.Image) -> torch.Tensor:
        return to_pixels(picture.resize((16, 16), Image.Resampling.BOX)).flatten()

    assert torch.corrcoef(torch.stack([coarse(rough), coarse(decoded)]))[0, 1] > 0.85


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_whoever_follows_a_drawing_sees_it_come(warm: WarmBase, tmp_path: Path, sampler: str):
    seen = []

    def look(done: int, total: int) -> None:
        if (tmp_path / FRAME).is_file():
            seen.append(Image.open(tmp_path / FRAME).size)

    request = SamplingConfig(prompts=("a cat", "a house"), strengths=(0.0, 1.0), steps=2, sampler=sampler)
    drawn = generate_and_save(warm, [], request, tmp_path, look)
    assert seen
    assert seen[0] == (2 * 128, 2 * 128)
    assert not (tmp_path / FRAME).exists()
    assert len(drawn) == 5
    quiet = generate_and_save(warm, [], request, tmp_path / "quiet")
    assert [path.read_bytes() for path in quiet] == [
        path.read_bytes() for path in drawn
    ]  # to look changes nothing
