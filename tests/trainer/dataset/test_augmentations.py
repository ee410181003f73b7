"""Augmentations of pictures, their cached latents, masks, and the sources of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.conftest import INK, MODELS
from trainer.config import TrainConfig, config_from
from trainer.dataset.augmentations import Augmentation, augmentations_of
from trainer.dataset.buckets import place
from trainer.dataset.manifest import Item
from trainer.dataset.scan import scan
from trainer.dataset.sources import scan_all, with_class_and_validation
from trainer.errors import ConfigError, DatasetError
from trainer.runs import events, run
from trainer.runs.commands import CommandInbox
from trainer.runs.inputs import Inputs, input_states
from trainer.sdxl.base import open_base
from trainer.training.caching import FeatureExtractor
from trainer.training.examples import LatentDataset
from trainer.training.feature_cache import FeatureCache

WIDE = place(200, 100, [(64, 64)], step=64)  # resized to 128 x 64: half of it is cut away


def item(digest: str = "a", **facts) -> Item:
    return Item(**{"path": "/a.png", "caption": "", "width": 200, "height": 100, "digest": digest, **facts})


def gradient() -> Image.Image:
    """A gradient: bluer to the left, redder downwards, greener to the right."""
    x, y = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 100))
    return Image.fromarray(np.stack([y, x, 255 - x], axis=2).astype(np.uint8))


def test_a_picture_has_one_plain_augmentation_by_default():
    assert augmentations_of(TrainConfig(), item(), WIDE) == [Augmentation(placement=WIDE)]


def test_flip_adds_a_mirrored_copy_of_each_augmentation():
    plain, mirrored = augmentations_of(TrainConfig(flip=True), item(), WIDE)
    assert np.array_equal(
        np.asarray(mirrored.apply(gradient())), np.asarray(ImageOps.mirror(plain.apply(gradient())))
    )
    assert len(augmentations_of(TrainConfig(flip=True, random_crop=True, variants=3), item(), WIDE)) == 6


def test_crop_left_of_a_mirrored_picture_counts_from_its_own_left_side():
    left = Augmentation(placement=place(200, 100, [(64, 64)], step=64), is_mirrored=True)
    moved = augmentations_of(TrainConfig(random_crop=True, flip=True, variants=5), item(), WIDE)
    for plain, mirrored in zip(moved[:5], moved[5:], strict=True):
        assert plain.crop_left + mirrored.crop_left == 128 - 64
        # cropping the mirrored picture there gives the same
        whole = ImageOps.mirror(gradient().resize((128, 64), Image.Resampling.LANCZOS))
        there = whole.crop((mirrored.crop_left, 0, mirrored.crop_left + 64, 64))
        assert np.array_equal(np.asarray(mirrored.apply(gradient())), np.asarray(there))
    assert left.crop_left == 32


@given(st.text(min_size=1, max_size=8), st.integers(1, 400), st.integers(1, 400))
def test_random_crops_stay_inside_the_picture_and_are_reproducible(digest: str, width: int, height: int):
    placement = place(width, height, [(64, 64), (96, 40)], step=8)
    config = TrainConfig(random_crop=True, variants=4)
    forms = augmentations_of(config, item(digest), placement)
    assert forms == augmentations_of(config, item(digest), placement)
    for form in forms:
        at = form.placement
        assert 0 <= at.crop_left <= at.resized[0] - at.bucket[0]
        assert 0 <= at.crop_top <= at.resized[1] - at.bucket[1]
        assert (at.bucket, at.resized) == (placement.bucket, placement.resized)


def test_random_crops_differ_between_augmentations_and_pictures():
    config = TrainConfig(random_crop=True, variants=8)
    lefts = [
        [form.placement.crop_left for form in augmentations_of(config, item(name), WIDE)] for name in "ab"
    ]
    assert len(set(lefts[0])) > 3
    assert lefts[0] != lefts[1]


def test_colour_jitter_changes_colours_within_its_limits():
    config = TrainConfig(colour_jitter=0.2, variants=16)
    forms = augmentations_of(config, item(), WIDE)
    assert len(forms) == 16
    for form in forms:
        assert all(0.8 <= factor <= 1.2 for factor in form.colours[:3])
        assert abs(form.colours[3]) <= 0.04
        assert not np.array_equal(
            np.asarray(form.apply(gradient())), np.asarray(Augmentation(placement=WIDE).apply(gradient()))
        )
    bright = Augmentation(placement=WIDE, colours=(0.5, 1.0, 1.0, 0.0))
    half = np.asarray(Augmentation(placement=WIDE).apply(gradient())).astype(int) // 2
    assert np.abs(np.asarray(bright.apply(gradient())).astype(int) - half).max() <= 1
    turned = np.asarray(
        Augmentation(placement=place(64, 64, [(64, 64)], step=64), colours=(1, 1, 1, 1 / 3)).apply(
            Image.new("RGB", (64, 64), "red")
        )
    )
    assert (
        np.abs(turned[0, 0].astype(int) - [0, 255, 0]).max() <= 8
    )  # a third of the circle from red is green


def pictures_of(tmp_path: Path, folder: Path, **settings) -> LatentDataset:
    created = run.Run(tmp_path / "run")
    created.path.mkdir(exist_ok=True)
    base = open_base("tiny-sdxl", MODELS)
    cache = FeatureCache(tmp_path / ".cache", base.fingerprint)
    config = TrainConfig(**settings)
    manifest = with_class_and_validation(scan(folder), config)
    inbox, inputs = CommandInbox(created, None), Inputs(input_states(manifest))
    extractor = FeatureExtractor(created, config, base, cache, torch.device("cpu"), inbox, inputs)
    return extractor.latents(manifest.training_items)


@pytest.fixture
def art(tmp_path: Path) -> Path:
    folder = tmp_path / "art"
    folder.mkdir()
    gradient().save(folder / "wide.png")
    Image.open(INK / "owl.png").save(folder / "owl.png")
    return folder


def test_mirrored_pictures_have_their_own_latents_and_are_drawn_half_of_the_time(
    tmp_path: Path, art: Path, monkeypatch
):
    dataset = pictures_of(tmp_path, art, flip=True)
    assert all(
        len(forms) == 2 and not torch.equal(forms[0].mean, forms[1].mean) for forms in dataset.examples
    )
    mirrored = [
        dataset.batch([0], 0, position).examples[0].augmentation.is_mirrored for position in range(400)
    ]
    assert 0.4 < sum(mirrored) / 400 < 0.6
    assert mirrored == [
        dataset.batch([0], 0, position).examples[0].augmentation.is_mirrored for position in range(400)
    ]
    monkeypatch.setattr(
        "trainer.training.caching.encode_image", lambda *_: pytest.fail("a picture was encoded again")
    )
    again = pictures_of(tmp_path, art, flip=True)
    assert torch.equal(again.examples[0][1].mean, dataset.examples[0][1].mean)


def test_each_picture_trains_at_each_resolution(tmp_path: Path, art: Path):
    dataset = pictures_of(tmp_path, art, resolutions=(64, 128))
    assert [item.name for item in dataset.items] == ["owl.png", "wide.png"] * 2
    areas = [width * height for width, height in dataset.buckets]
    assert all(area <= 64 * 64 for area in areas[:2])
    assert all(64 * 64 < area <= 128 * 128 for area in areas[2:])


@pytest.mark.parametrize("given", [[32], ["768"], [5000], 768])
def test_resolutions_must_be_sides_in_px(given):
    with pytest.raises(ConfigError, match="resolutions must"):
        config_from({"resolutions": given})


def test_masks_have_the_size_of_the_latents(tmp_path: Path, art: Path):
    Image.new("L", (200, 100), 255).save(art / "wide.mask.png")
    dataset = pictures_of(tmp_path, art, mask="file", mask_outside=0.1)
    by_name = {entry.name: row for row, entry in enumerate(dataset.items)}
    assert set(by_name) == {"owl.png", "wide.png"}
    wide = dataset.batch([by_name["wide.png"]], 0, 0)
    mask = wide.masks([False])
    assert mask is not None
    assert mask.shape == (1, 1, *wide.examples[0].mean.shape[-2:])
    assert bool((mask == 1).all())
    assert dataset.batch([by_name["owl.png"]], 0, 0).masks([False]) is None


def test_masks_without_any_mask_file_are_refused(tmp_path: Path, art: Path):
    with pytest.raises(DatasetError, match="no picture has a mask"):
        pictures_of(tmp_path, art, mask="file")


def test_several_folders_are_scanned_together(tmp_path: Path, art: Path):
    both = scan_all([INK, art], trigger="ink")
    assert len(both.items) == 26
    assert both.folder == str(INK)


def test_a_toml_file_sets_repeats_weights_and_captions_of_folders(tmp_path: Path, art: Path):
    toml_file = tmp_path / "set.toml"
    toml_file.write_text(
        '[[folder]]\npath = "art"\nrepeats = 3\nweight = 0.5\ncaption = "a shape"\n'
        f'[[folder]]\npath = "{INK}"\n'
    )
    items = scan_all([toml_file], trigger="ink").items
    assert [(i.repeats, i.weight, i.caption) for i in items[:2]] == [(3, 0.5, "ink, a shape")] * 2
    assert len(items) == 26
    assert {(i.repeats, i.weight) for i in items[2:]} == {(1, 1.0)}


@pytest.mark.parametrize(
    "text",
    [
        "folder = 1",
        "[[folder]]\nrepeats = 2",
        "[[folder]]\npath = 'art'\nweigth = 1",
        "[[folder]]\npath = 'art'\nrepeats = 0",
        "]",
        "",
    ],
)
def test_an_invalid_toml_file_is_named(tmp_path: Path, art: Path, text: str):
    (tmp_path / "set.toml").write_text(text)
    with pytest.raises(DatasetError, match=r"set\.toml"):
        scan_all([tmp_path / "set.toml"])


def test_a_mask_that_hides_its_whole_picture_is_reported(tmp_path: Path, art: Path):
    for name, colour in (("wide", 0), ("owl", 255)):
        Image.new("L", Image.open(art / f"{name}.png").size, colour).save(art / f"{name}.mask.png")
    pictures_of(tmp_path, art, mask="file")
    messages = [
        event["message"] for event in events.read(tmp_path / "run" / "events.jsonl")[0] if "message" in event
    ]
    assert [text for text in messages if "nothing is trained from wide.png, where the mask is black" in text]
