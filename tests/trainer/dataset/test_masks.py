"""Masks: the weights that a mask file means, in every way in."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainer.dataset.masks import read_mask
from trainer.errors import DatasetError
from ui.store.masks import save_mask

SIZE = (64, 48)
BOX = (16, 12, 31, 35)  # left, top, right, bottom, inclusive
INSIDE = np.zeros((48, 64), dtype=bool)
INSIDE[12:36, 16:32] = True


def drawn(mode: str, ground: object, shape: object) -> Image.Image:
    image = Image.new(mode, SIZE, ground)  # pyright: ignore
    ImageDraw.Draw(image).rectangle(BOX, fill=shape)  # pyright: ignore
    return image


def read(data: bytes) -> Image.Image:
    """Returns the mask that the trainer reads from a file m.png with these bytes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "m.png"
        path.write_bytes(data)
        return read_mask(path, SIZE)


def png(image: Image.Image, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG", **options)  # pyright: ignore
    return data.getvalue()


WHITE_BOXES = {
    "white on black": drawn("L", 0, 255),
    "1 bit": drawn("1", 0, 1),
    "RGB": drawn("RGB", "black", "white"),
    "palette": drawn("RGB", "black", "white").quantize(4),
    "16 bits": Image.fromarray(np.where(INSIDE, 65535, 0).astype(np.uint16)),
    "white on transparent black": drawn("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)),
    "white on transparent white": drawn("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)),
    "grey with opacity": drawn("LA", (0, 0), (255, 255)),
    "white on opaque black, with an alpha channel": drawn("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
    "cut-out in dark colours": drawn("RGBA", (0, 0, 0, 0), (60, 10, 10, 255)),
}


@pytest.mark.parametrize("form", WHITE_BOXES)
def test_every_form_of_a_mask_means_the_same_to_the_trainer_and_to_the_page(form: str, tmp_path: Path):
    data = png(WHITE_BOXES[form])
    (tmp_path / "art.mask.png").write_bytes(data)
    weights = np.asarray(read_mask(tmp_path / "art.mask.png", SIZE))
    assert np.array_equal(weights, np.where(INSIDE, 255, 0))
    Image.new("RGB", SIZE, "red").save(tmp_path / "art.png")
    save_mask(tmp_path / "art.png", data)
    stored = Image.open(tmp_path / "art.mask.png")
    assert stored.mode == "L"
    assert np.array_equal(np.asarray(stored), weights)


def test_half_transparent_white_counts_half():
    weights = read(png(drawn("RGBA", (0, 0, 0, 0), (255, 255, 255, 128))))
    assert sorted(set(weights.tobytes())) == [0, 128]


def test_the_luminance_of_an_opaque_coloured_mask_counts():
    weights = np.asarray(read(png(drawn("RGB", "black", (255, 0, 0)))))
    assert set(weights[INSIDE]) == {76}
    assert set(weights[~INSIDE]) == {0}


@pytest.mark.parametrize("shape", [(0, 0, 0, 255), (0, 0, 0, 0)])
def test_a_black_drawing_on_a_transparent_page_is_rejected_with_its_remedy(
    shape: tuple[int, ...], tmp_path: Path
):
    data = png(drawn("RGBA", (0, 0, 0, 0), shape))
    with pytest.raises(DatasetError, match=r"m\.png is black or transparent everywhere.*paint white"):
        read(data)
    Image.new("RGB", SIZE).save(tmp_path / "art.png")
    with pytest.raises(DatasetError, match="paint white"):
        save_mask(tmp_path / "art.png", data)
    assert not (tmp_path / "masks").exists()


def test_a_mask_has_the_shape_of_its_picture_in_any_size():
    for size in ((32, 24), (128, 96), (65, 48)):
        assert read(png(drawn("L", 0, 255).resize(size))).size == size
    for size in ((48, 64), (64, 64), (70, 48)):
        with pytest.raises(DatasetError, match=r"m\.png has .* another shape than its picture \(64 x 48\)"):
            read(png(drawn("L", 0, 255).resize(size)))


def test_a_mask_is_turned_as_its_camera_held_it():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = drawn("L", 0, 255).transpose(Image.Transpose.ROTATE_90)
    weights = read(png(turned, exif=exif))
    assert np.array_equal(np.asarray(weights), np.where(INSIDE, 255, 0))


def test_a_file_that_is_no_picture_is_rejected():
    with pytest.raises(DatasetError, match=r"m\.png can't be read as a picture"):
        read(b"no picture")
