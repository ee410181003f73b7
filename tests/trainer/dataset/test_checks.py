"""Each fault is built here and must be found; pictures without it must not be blamed for it."""

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
    """Discs and strokes with clean edges, a quarter of the canvas left calm."""
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


def told(folder: Path, pictures: dict[str, Image.Image], preset: str = "", **how) -> list[Finding]:
    measures: dict[str, ImageMetrics] = {}
    for name, picture in pictures.items():
        picture.save(folder / name, **how)
        measures[name] = measure(folder / name)
    places = PLAN.place_all([(seen.width, seen.height) for seen in measures.values()])
    return findings(measures, dict(zip(measures, places, strict=True)), preset)


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.picture) for finding in found]


def test_clean_pictures_are_not_blamed(tmp_path: Path):
    assert told(tmp_path, {f"{seed}.jpg": painting(seed) for seed in range(10)}, "style", quality=92) == []


def test_the_sample_set_has_nothing_wrong():
    names = sorted(path for path in INK.glob("*.png"))
    measures = {path.name: measure(path) for path in names}
    for side in (128, 512):
        places = BucketPlan(side=side, latent_factor=8).place_all(
            [(seen.width, seen.height) for seen in measures.values()]
        )
        assert findings(measures, dict(zip(measures, places, strict=True)), "style") == []


def test_copies_and_look_alikes_are_told_with_their_twin(tmp_path: Path):
    one, other = painting(1), painting(2)
    found = told(
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


def test_a_picture_smaller_than_its_bucket_is_told_with_how_much(tmp_path: Path):
    found = told(tmp_path, {"thumb.png": painting(1, (128, 128))})
    assert kinds(found) == [("small", "thumb.png")] and found[0].sentence.startswith(
        "has 128 × 128 pixels and would be upscaled 2.0 times"
    )


@pytest.mark.parametrize("method", ["BICUBIC", "BILINEAR", "LANCZOS"])
@pytest.mark.parametrize("quality", [85, 100])
def test_an_enlarged_picture_is_seen_through(tmp_path: Path, method: str, quality: int):
    small = painting(3, (120, 120)).resize((320, 320), Image.Resampling[method])
    assert kinds(told(tmp_path, {"a.jpg": small}, quality=quality)) == [("enlarged", "a.jpg")]


@pytest.mark.parametrize("radius", [4, 8])
def test_a_blurred_picture_is_told(tmp_path: Path, radius: int):
    found = told(
        tmp_path,
        {"a.jpg": painting(4).filter(ImageFilter.GaussianBlur(radius)), "b.jpg": painting(5)},
        quality=90,
    )
    assert kinds(found) == [("blurred", "a.jpg")]


def test_softness_that_the_training_shrinks_away_is_no_fault(tmp_path: Path):
    assert (
        told(tmp_path, {"scan.png": painting(6, (600, 600)).resize((1000, 1000), Image.Resampling.BICUBIC)})
        == []
    )


def test_natural_spectra_lack_no_octave():
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
    assert 0.5 <= octaves <= 1.5 and not is_blurred


def test_transparency_is_told_in_percent(tmp_path: Path):
    picture = painting(7).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 320, 80))
    found = told(tmp_path, {"a.png": picture})
    assert kinds(found) == [("see_through", "a.png")] and found[0].values == {"percent": 25}


@pytest.mark.parametrize("sides", [(0, 30, 0, 30), (40, 0, 40, 0)])
def test_bars_of_film_stills_are_told_and_white_paper_is_not(
    tmp_path: Path, sides: tuple[int, int, int, int]
):
    still = painting(8)
    ImageDraw.Draw(still).rectangle(
        (0, 0, 319, 319), outline="red", width=45
    )  # whatever meets the bars differs from them
    barred = Image.new("RGB", (320 + sides[0] + sides[2], 320 + sides[1] + sides[3]), "black")
    barred.paste(still, sides[:2])
    page = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(page).ellipse((100, 100, 300, 300), fill="black")
    found = told(tmp_path, {"still.jpg": barred, "page.png": page}, quality=90)
    assert ("bars", "still.jpg") in kinds(found) and not [f for f in found if f.picture == "page.png"]
    assert measure(tmp_path / "still.jpg").bars == pytest.approx(sides, abs=1)


def test_a_signature_that_returns_in_the_same_corner_is_told(tmp_path: Path):
    def signed(seed: int) -> Image.Image:
        picture = painting(seed)
        ImageDraw.Draw(picture).text((268, 298), "J. Doe 26", fill="black")
        return picture

    found = told(tmp_path, {f"{seed}.png": signed(seed) if seed < 5 else painting(seed) for seed in range(9)})
    assert kinds(found) == [("corner", f"{seed}.png") for seed in range(5)]
    assert {finding.values["corner"] for finding in found} == {CORNERS[3]}
    assert (
        told(tmp_path, {"0.png": signed(0), **{f"{seed}.png": painting(seed) for seed in range(1, 9)}}) == []
    )


def test_a_banner_is_told_how_much_it_loses(tmp_path: Path):
    found = told(tmp_path, {"banner.png": painting(9, (1400, 200))})
    assert ("cropped", "banner.png") in kinds(found)
    assert next(f for f in found if f.kind == "cropped").values["percent"] > 20


@pytest.mark.parametrize(("preset", "fewest"), [("style", 10), ("character", 8), ("concept", 5)])
def test_too_few_pictures_for_what_is_taught_are_told(preset: str, fewest: int):
    seen = [
        ImageMetrics(
            width=256,
            height=256,
            digest=str(n),
            perceptual_hash=0,
            thumbnail="00",
            detail=(),
            transparent_share=0.0,
            bars=(0,) * 4,
            corners=(False,) * 4,
        )
        for n in range(fewest)
    ]
    assert findings({str(n): one for n, one in enumerate(seen)}, preset=preset) == []
    few = findings({str(n): one for n, one in enumerate(seen[1:])}, preset=preset)
    assert kinds(few) == [("few", "")] and str(fewest) in few[0].sentence


def test_an_empty_set_has_no_findings_but_its_emptiness():
    assert kinds(findings({}, preset="style")) == [("few", "")]


def test_measures_survive_being_kept(tmp_path: Path):
    painting(1).save(tmp_path / "a.png")
    seen = measure(tmp_path / "a.png")
    assert ImageMetrics.from_json(seen.to_json()) == seen
