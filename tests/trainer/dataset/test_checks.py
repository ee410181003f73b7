"""Checks of picture sets: each defect is created here and must be found, and sound pictures have no
findings.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from tests.conftest import INK
from trainer.dataset.buckets import BucketPlan
from trainer.dataset.checks import CORNERS, Finding, findings, missing_octaves
from trainer.dataset.image_metrics import ImageMetrics, measure

PLAN = BucketPlan(side=256, latent_factor=8)


def painting(seed: int, size: tuple[int, int] = (320, 320)) -> Image.Image:
    """Discs and strokes with clean edges, and plain margins."""
    chance, (width, height) = random.Random(seed), (size[0] * 3, size[1] * 3)
    picture = Image.new("RGB", (width, height), tuple(chance.randrange(120, 256) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(30):
        x, y, side = (
            chance.uniform(0.2, 0.7) * width,
            chance.uniform(0.2, 0.7) * height,
            chance.randrange(30, width // 5),
        )
        draw.ellipse((x, y, x + side, y + side), fill=tuple(chance.randrange(256) for _ in range(3)))
        end = chance.uniform(0.2, 0.8) * width, chance.uniform(0.2, 0.8) * height
        draw.line((x, y, *end), fill=tuple(chance.randrange(256) for _ in range(3)), width=8)
    return picture.resize(size, Image.Resampling.LANCZOS)


def findings_of(folder: Path, pictures: dict[str, Image.Image], preset: str = "", **how) -> list[Finding]:
    metrics: dict[str, ImageMetrics] = {}
    for name, picture in pictures.items():
        picture.save(folder / name, **how)
        metrics[name] = measure(folder / name)
    placements = PLAN.place_all([(one.width, one.height) for one in metrics.values()])
    return findings(metrics, dict(zip(metrics, placements, strict=True)), preset)


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.picture) for finding in found]


def test_sound_pictures_have_no_findings(tmp_path: Path):
    assert (
        findings_of(tmp_path, {f"{seed}.jpg": painting(seed) for seed in range(10)}, "style", quality=92)
        == []
    )


def test_the_sample_set_has_no_findings():
    names = sorted(path for path in INK.glob("*.png"))
    metrics = {path.name: measure(path) for path in names}
    for side in (128, 512):
        placements = BucketPlan(side=side, latent_factor=8).place_all(
            [(one.width, one.height) for one in metrics.values()]
        )
        assert findings(metrics, dict(zip(metrics, placements, strict=True)), "style") == []


def test_copies_and_similar_pictures_are_found_with_the_name_of_the_other(tmp_path: Path):
    one, other = painting(1), painting(2)
    found = findings_of(
        tmp_path,
        {
            "a.png": one,
            "b.png": one,
            "c.png": one.resize((280, 280)),
            "d.png": ImageEnhance.Brightness(one).enhance(0.8),
            "e.png": one.crop((6, 6, 314, 314)),
            "f.png": other,
            "g.png": other.transpose(Image.Transpose.ROTATE_180),
        },
    )
    assert kinds(found) == [("copy", "b.png"), ("alike", "c.png"), ("alike", "d.png"), ("alike", "e.png")]
    assert all(finding.values["other"] == "a.png" for finding in found)


def test_a_picture_smaller_than_its_bucket_is_found_with_its_enlargement(tmp_path: Path):
    found = findings_of(tmp_path, {"thumb.png": painting(1, (128, 128))})
    assert kinds(found) == [("small", "thumb.png")]
    assert found[0].sentence.startswith("has 128 × 128 pixels and would be upscaled 2.0 times")


@pytest.mark.parametrize("method", ["BICUBIC", "BILINEAR", "LANCZOS"])
@pytest.mark.parametrize("quality", [85, 100])
def test_an_enlarged_picture_is_found(tmp_path: Path, method: str, quality: int):
    small = painting(3, (120, 120)).resize((320, 320), Image.Resampling[method])
    assert kinds(findings_of(tmp_path, {"a.jpg": small}, quality=quality)) == [("enlarged", "a.jpg")]


@pytest.mark.parametrize("radius", [4, 8])
def test_a_blurred_picture_is_found(tmp_path: Path, radius: int):
    found = findings_of(
        tmp_path,
        {"a.jpg": painting(4).filter(ImageFilter.GaussianBlur(radius)), "b.jpg": painting(5)},
        quality=90,
    )
    assert kinds(found) == [("blurred", "a.jpg")]


def test_blur_that_disappears_at_the_training_size_is_no_finding(tmp_path: Path):
    assert (
        findings_of(
            tmp_path, {"scan.png": painting(6, (600, 600)).resize((1000, 1000), Image.Resampling.BICUBIC)}
        )
        == []
    )


def test_natural_spectra_miss_no_octave():
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    frequency[0, 0] = 1
    natural = np.fft.ifft2(np.fft.fft2(rng.standard_normal((256, 256))) / frequency).real
    grey = Image.fromarray(((natural - natural.min()) / np.ptp(natural) * 255).astype(np.uint8))
    from trainer.dataset.image_metrics import _detail

    assert missing_octaves(_detail(grey)) == (0.0, False)
    octaves, is_blurred = missing_octaves(
        _detail(grey.reduce(2).resize((256, 256), Image.Resampling.BICUBIC))
    )
    assert 0.5 <= octaves <= 1.5
    assert not is_blurred


def test_transparency_is_found_with_its_percentage(tmp_path: Path):
    picture = painting(7).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 320, 80))
    found = findings_of(tmp_path, {"a.png": picture})
    assert kinds(found) == [("see_through", "a.png")]
    assert found[0].values == {"percent": 25}


@pytest.mark.parametrize("sides", [(0, 30, 0, 30), (40, 0, 40, 0)])
def test_bars_of_film_stills_are_found_and_white_paper_is_none(
    tmp_path: Path, sides: tuple[int, int, int, int]
):
    still = painting(8)
    ImageDraw.Draw(still).rectangle(
        (0, 0, 319, 319), outline="red", width=45
    )  # the picture must differ from the bars that surround it
    barred = Image.new("RGB", (320 + sides[0] + sides[2], 320 + sides[1] + sides[3]), "black")
    barred.paste(still, sides[:2])
    page = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(page).ellipse((100, 100, 300, 300), fill="black")
    found = findings_of(tmp_path, {"still.jpg": barred, "page.png": page}, quality=90)
    assert ("bars", "still.jpg") in kinds(found)
    assert not [f for f in found if f.picture == "page.png"]
    assert measure(tmp_path / "still.jpg").bars == pytest.approx(sides, abs=1)


def test_a_signature_in_the_same_corner_of_several_pictures_is_found(tmp_path: Path):
    def signed(seed: int) -> Image.Image:
        picture = painting(seed)
        ImageDraw.Draw(picture).text((268, 298), "J. Doe 26", fill="black")
        return picture

    found = findings_of(
        tmp_path, {f"{seed}.png": signed(seed) if seed < 5 else painting(seed) for seed in range(9)}
    )
    assert kinds(found) == [("corner", f"{seed}.png") for seed in range(5)]
    assert {finding.values["corner"] for finding in found} == {CORNERS[3]}
    assert (
        findings_of(tmp_path, {"0.png": signed(0), **{f"{seed}.png": painting(seed) for seed in range(1, 9)}})
        == []
    )


def test_a_cropped_banner_is_found_with_its_percentage(tmp_path: Path):
    found = findings_of(tmp_path, {"banner.png": painting(9, (1400, 200))})
    assert ("cropped", "banner.png") in kinds(found)
    assert next(f for f in found if f.kind == "cropped").values["percent"] > 20


@pytest.mark.parametrize(("preset", "fewest"), [("style", 10), ("character", 8), ("concept", 5)])
def test_too_few_pictures_for_the_preset_are_found(preset: str, fewest: int):
    one = [
        ImageMetrics(
            width=256,
            height=256,
            digest=str(n),
            perceptual_hash=0,
            thumbnail="00",
            detail=(),
            transparent_share=0.0,
            bars=(0, 0, 0, 0),
            corners=(False, False, False, False),
        )
        for n in range(fewest)
    ]
    assert findings({str(n): one for n, one in enumerate(one)}, preset=preset) == []
    few = findings({str(n): one for n, one in enumerate(one[1:])}, preset=preset)
    assert kinds(few) == [("few", "")]
    assert str(fewest) in few[0].sentence


def test_an_empty_set_has_only_the_finding_of_too_few_pictures():
    assert kinds(findings({}, preset="style")) == [("few", "")]


def test_metrics_survive_a_round_trip_through_json(tmp_path: Path):
    painting(1).save(tmp_path / "a.png")
    one = measure(tmp_path / "a.png")
    assert ImageMetrics.from_json(one.to_json()) == one
