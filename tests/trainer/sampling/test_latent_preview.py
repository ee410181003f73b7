"""Rough images of latents, shown while an image is generated."""

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


def test_a_rough_image_has_the_colours_of_the_decoded_image(warm: WarmBase):
    art = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(art)
    pen.ellipse((16, 16, 80, 80), fill="#d0302a")
    pen.rectangle((70, 60, 120, 120), fill="#2a50d0")
    latents = encode_image(warm.vae, to_pixels(art))[0] * warm.vae.config["scaling_factor"]
    rough = warm.latent_to_rgb.image(latents[0], 128)
    decoded = decode_images(warm.vae, latents)[0]
    assert rough.size == decoded.size

    def coarse(image: Image.Image) -> torch.Tensor:
        return to_pixels(image.resize((16, 16), Image.Resampling.BOX)).flatten()

    assert torch.corrcoef(torch.stack([coarse(rough), coarse(decoded)]))[0, 1] > 0.85


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_rough_images_are_written_during_sampling_and_change_no_result(
    warm: WarmBase, tmp_path: Path, sampler: str
):
    frame_sizes = []

    def read_frame(done: int, total: int) -> None:
        if (tmp_path / FRAME).is_file():
            frame_sizes.append(Image.open(tmp_path / FRAME).size)

    config = SamplingConfig(prompts=("a cat", "a house"), strengths=(0.0, 1.0), steps=2, sampler=sampler)
    watched = generate_and_save(warm, [], config, tmp_path, read_frame)
    assert frame_sizes
    assert frame_sizes[0] == (2 * 128, 2 * 128)
    assert not (tmp_path / FRAME).exists()
    assert len(watched) == 5
    unwatched = generate_and_save(warm, [], config, tmp_path / "unwatched")
    assert [path.read_bytes() for path in unwatched] == [path.read_bytes() for path in watched]
