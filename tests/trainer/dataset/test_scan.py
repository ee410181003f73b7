"""Scanning of picture folders: formats, captions, trigger words and buckets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from trainer.dataset.buckets import BucketPlan, bucket_sizes, crop_notice, place
from trainer.dataset.captions import with_trigger
from trainer.dataset.layout import kohya_folder
from trainer.dataset.pictures import open_picture
from trainer.dataset.scan import scan
from trainer.errors import ConfigError, DatasetError


def painted(size: tuple[int, int] = (80, 60), colour: str | tuple[int, int, int] = "red") -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "avif"])
def test_every_supported_format_is_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"art.{suffix}"
    painted().save(path)
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert picture.size == (80, 60)
    assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - [255, 0, 0]).max() < 12


def test_exif_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    painted().save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg").size == (60, 80)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pictures_get_a_white_background(tmp_path: Path, mode: str):
    options: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).convert(mode).save(tmp_path / "a.png", **options)
    assert np.asarray(open_picture(tmp_path / "a.png")).min() == 255


def test_sixteen_bit_grey_uses_the_whole_range(tmp_path: Path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    values = np.asarray(open_picture(tmp_path / "a.png"))[..., 0]
    assert values.min() == 0
    assert values.max() == 255
    assert abs(float(values.mean()) - 127.5) < 1


def test_cmyk_becomes_rgb(tmp_path: Path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, _ = np.asarray(open_picture(tmp_path / "a.jpg")).mean(axis=(0, 1))
    assert red > 200
    assert green < 60


def test_an_embedded_colour_profile_is_applied(tmp_path: Path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    painted((32, 32), (200, 100, 50)).save(tmp_path / "a.png", icc_profile=srgb)
    assert np.abs(np.asarray(open_picture(tmp_path / "a.png")).astype(int)[0, 0] - [200, 100, 50]).max() <= 1
    # The same profile with its red and green primaries exchanged: (200, 100, 50) in it is (100, 200, 50) in
    # sRGB.
    swapped = srgb.replace(b"rXYZ", b"~XYZ").replace(b"gXYZ", b"rXYZ").replace(b"~XYZ", b"gXYZ")
    painted((32, 32), (200, 100, 50)).save(tmp_path / "b.png", icc_profile=swapped)
    assert np.abs(np.asarray(open_picture(tmp_path / "b.png")).astype(int)[0, 0] - [100, 200, 50]).max() <= 3


def test_bad_pictures_are_named_and_the_others_are_scanned(tmp_path: Path):
    painted().save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.jpg").write_text("not a picture")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    manifest = scan(tmp_path)
    assert [item.name for item in manifest.items] == ["good.png"]
    assert sorted(problem.split()[0] for problem in manifest.problems) == [
        "empty.png",
        "half.png",
        "words.jpg",
    ]


def test_captions_come_from_sidecars_metadata_and_trigger(tmp_path: Path):
    for name in ("a", "b", "c"):
        painted().save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a red square\n")
    (tmp_path / "b.caption").write_text("ink, a  line")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "c.png", "text": "from metadata"}) + "\nbroken\n"
    )
    manifest = scan(tmp_path, trigger="ink")
    assert [item.caption for item in manifest.items] == [
        "ink, a red square",
        "ink, a line",
        "ink, from metadata",
    ]
    assert len(manifest.problems) == 1
    assert "line 2" in manifest.problems[0]


def test_a_picture_without_caption_gets_the_trigger_alone(tmp_path: Path):
    painted().save(tmp_path / "a.png")
    assert scan(tmp_path, trigger="ink").items[0].caption == "ink"


def test_metadata_can_set_a_weight_without_a_text(tmp_path: Path):
    for name in ("a", "b"):
        painted().save(tmp_path / f"{name}.png")
    lines = [
        {"file_name": "a.png", "text": None, "weight": 0.25},
        {"file_name": "b.png", "text": "b", "weight": -1},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    manifest = scan(tmp_path)
    assert [(item.caption, item.weight) for item in manifest.items] == [("", 0.25), ("b", 1.0)]
    assert len(manifest.problems) == 1
    assert "weight must be" in manifest.problems[0]


def test_unsupported_formats_and_undecodable_names_are_problems(tmp_path: Path):
    painted().save(tmp_path / "a.png")
    (tmp_path / "phone.heic").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("no picture, and no problem")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    try:
        painted().save(odd)
        expected = ["'caf\\udce9.png'", "phone.heic"]
    except OSError:  # some file systems refuse such names
        expected = ["phone.heic"]
    manifest = scan(tmp_path)
    assert [item.name for item in manifest.items] == ["a.png"]
    assert sorted(problem.split()[0] for problem in manifest.problems) == expected


def test_kohya_folders_set_repeats_and_caption(tmp_path: Path):
    (tmp_path / "10_sks cat").mkdir()
    painted().save(tmp_path / "10_sks cat" / "a.png")
    item = scan(tmp_path).items[0]
    assert (item.repeats, item.caption) == (10, "sks cat")
    assert kohya_folder("cats") is None


def test_a_folder_without_pictures_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="holds no picture"):
        scan(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        scan(tmp_path / "gone")


@given(st.text(max_size=60), st.text(max_size=20))
def test_the_trigger_is_in_every_caption(caption: str, trigger: str):
    assert trigger.strip().lower() in with_trigger(caption, trigger).lower()


def test_a_trigger_inside_another_word_is_not_the_trigger():
    assert with_trigger("a pink cat", "ink") == "ink, a pink cat"


@given(st.integers(16, 4000), st.integers(16, 4000), st.sampled_from([128, 512, 1024]), st.booleans())
def test_every_picture_fits_its_bucket(width: int, height: int, resolution: int, no_upscale: bool):
    step = resolution // 16
    sizes = bucket_sizes(resolution, step=step, low=resolution // 2, high=resolution * 2)
    placement = place(width, height, sizes, step=step, no_upscale=no_upscale)
    (w, h), (rw, rh) = placement.bucket, placement.resized
    assert w % step == 0
    assert h % step == 0
    assert w * h <= resolution * resolution
    assert 0 <= placement.crop_left <= rw - w
    assert 0 <= placement.crop_top <= rh - h
    assert w in (rw, *range(rw))
    assert 0 <= placement.cropped_share < 1
    if no_upscale and width >= step and height >= step:
        assert rw <= max(width, w)
        assert rh <= max(height, h)


def test_cropped_pictures_are_reported_in_a_sentence():
    plan = BucketPlan(side=128, latent_factor=8)
    placements = plan.place_all([(512, 512), (600, 400), (400, 600)])
    notice = crop_notice(["square.png", "photo.png", "portrait.png"], placements)
    assert plan.step == 32
    assert notice is not None
    assert notice.startswith("2 of 3 pictures lose more than 5 %")
    assert crop_notice(["square.png"], placements[:1]) is None
    with pytest.raises(ConfigError, match="widen bucket_min"):
        BucketPlan(side=128, latent_factor=8, bucket_min=256).place_all([(512, 512)])


def test_a_square_picture_is_not_cropped():
    sizes = bucket_sizes(1024, step=64, low=512, high=2048)
    assert place(3000, 3000, sizes, step=64).cropped_share == 0
    assert place(3000, 3000, sizes, step=64).bucket == (1024, 1024)
