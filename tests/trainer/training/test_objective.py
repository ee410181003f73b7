"""Noise levels, noise, targets and losses against the papers' formulas and other implementations."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import INK, MODELS
from trainer.config import TrainConfig
from trainer.config.presets import preset_values
from trainer.dataset.augmentations import Augmentation, mask_of, mask_weights
from trainer.dataset.buckets import place
from trainer.dataset.scan import scan
from trainer.dataset.sources import with_class_and_validation
from trainer.errors import ConfigError, DatasetError
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.schedulers import training_scheduler
from trainer.training import noise
from trainer.training.objective import Objective, objective_of

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
SNR = ALPHAS / (1 - ALPHAS)
LEVELS = torch.tensor([0, 1, 250, 500, 999])


def objective(prediction: str = "epsilon", **settings) -> Objective:
    return Objective(TrainConfig(**settings), prediction, False, ALPHAS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base_with(**options) -> Base:
    """A base with no model but a scheduler; `options` are those of EulerDiscreteScheduler."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options
    )
    prediction_type = options.get("prediction_type", "epsilon")
    stand_in = SimpleNamespace(name="base", prediction_type=prediction_type, scheduler=lambda: scheduler)
    return cast(Base, stand_in)


@pytest.mark.parametrize(
    ("weighting", "of_x0"),
    [
        ("min_snr", lambda snr: torch.minimum(snr, torch.tensor(5.0))),
        ("soft_min_snr", lambda snr: 1 / (1 / snr + 1 / 5)),
        ("debiased", lambda snr: snr.sqrt()),
    ],
)
def test_weights_apply_the_same_factor_to_errors_of_the_image_for_each_prediction_type(weighting: str, of_x0):
    snr = SNR[LEVELS]
    # An error d in x_0 is an error sqrt(snr) d in the noise and sqrt(snr + 1) d in v.
    torch.testing.assert_close(objective(snr_weighting=weighting).weight(LEVELS) * snr, of_x0(snr))
    torch.testing.assert_close(
        objective("v_prediction", snr_weighting=weighting).weight(LEVELS) * (snr + 1), of_x0(snr)
    )


def test_debiased_estimation_multiplies_errors_of_noise_by_the_inverse_root_of_snr():
    torch.testing.assert_close(objective(snr_weighting="debiased").weight(LEVELS), 1 / SNR[LEVELS].sqrt())


def test_without_weighting_all_timesteps_have_weight_one():
    assert torch.equal(objective(snr_weighting="none").weight(LEVELS), torch.ones(5))
    assert torch.equal(
        objective(snr_weighting="soft_min_snr", min_snr_gamma=0.0).weight(LEVELS), torch.ones(5)
    )


def test_zero_terminal_snr_follows_the_paper():
    scheduler = training_scheduler(
        TrainConfig(zero_terminal_snr="on"), base_with(prediction_type="v_prediction")
    )
    root = ALPHAS.double().sqrt()
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Lin et al. 2023, algorithm 1
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double()[:-1], rescaled[:-1] ** 2, atol=1e-6, rtol=1e-3
    )
    assert scheduler.alphas_cumprod[-1] < 1e-6
    scheduler.set_timesteps(10, device=torch.device("cpu"))
    assert scheduler.timesteps[0] == 999  # trailing spacing: sampling begins at pure noise


@pytest.mark.parametrize(
    ("setting", "of_base", "zero"),
    [("auto", True, True), ("auto", False, False), ("off", True, False), ("on", False, True)],
)
def test_zero_terminal_snr_is_that_of_the_base_unless_it_is_set(setting: str, of_base: bool, zero: bool):
    base = base_with(prediction_type="v_prediction", rescale_betas_zero_snr=of_base)
    built = objective_of(TrainConfig(zero_terminal_snr=setting), base)
    assert built.zero_terminal_snr is zero
    assert bool(built.alphas_cumprod[-1] < 1e-6) is zero


def test_weights_and_targets_stay_finite_at_zero_terminal_snr():
    built = objective_of(TrainConfig(zero_terminal_snr="on"), open_base("tiny-sdxl", MODELS))
    last = torch.tensor([999])
    for weighting in ("min_snr", "soft_min_snr", "debiased", "none"):
        config = TrainConfig(zero_terminal_snr="on", snr_weighting=weighting, min_snr_gamma=5.0)
        weight = objective_of(config, open_base("tiny-sdxl", MODELS)).weight(last)
        assert 0.8 < float(weight) <= 1, "the level that decides on brightness is learned"
    x, e = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(
        built.target(x, e, last), -x, atol=2e-3, rtol=0
    )  # v of pure noise is the negative image
    torch.testing.assert_close(built.noisy(x, e, last, seeded()), e, atol=2e-3, rtol=0)


def test_zero_terminal_snr_is_rejected_with_prediction_of_noise():
    with pytest.raises(ConfigError, match="to off"):
        objective_of(TrainConfig(zero_terminal_snr="on"), base_with(prediction_type="epsilon"))
    with pytest.raises(ConfigError, match="to off"):
        TrainConfig(zero_terminal_snr="on", prediction_type="epsilon")


@pytest.mark.parametrize(
    ("setting", "of_base", "expected"),
    [
        ("auto", "epsilon", "epsilon"),
        ("v_prediction", "epsilon", "v_prediction"),
        ("epsilon", "v_prediction", "epsilon"),
    ],
)
def test_the_prediction_type_can_be_set(setting: str, of_base: str, expected: str):
    config, base = TrainConfig(prediction_type=setting), base_with(prediction_type=of_base)
    x, e = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    velocity = SCHEDULER.get_velocity(x, e, cast(torch.IntTensor, LEVELS))
    target = objective_of(config, base).target(x, e, LEVELS)
    torch.testing.assert_close(target, e if expected == "epsilon" else velocity)
    assert training_scheduler(config, base).config["prediction_type"] == expected


def test_a_random_noise_offset_is_drawn_for_each_image():
    shape = torch.Size((4000, 1, 4, 4))
    plain = noise.draw_noise(shape, 0.0, seeded())
    fixed = noise.draw_noise(shape, 1.0, seeded()) - plain
    drawn = noise.draw_noise(shape, 1.0, seeded(), random_offset=True) - plain
    share = (drawn / fixed)[:, 0, 0, 0]
    assert float(share.min()) >= -1e-4
    assert float(share.max()) <= 1.0001
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)  # uniform from 0 to 1
    assert float(share.std()) == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_multi_resolution_noise_has_unit_deviation_and_more_at_coarse_scales():
    fine = torch.randn(16, 4, 64, 64, generator=seeded())
    built = objective(multires_noise_iterations=6, multires_noise_discount=0.5).noise(fine.shape, seeded())
    torch.testing.assert_close(built.std(dim=(1, 2, 3)), torch.ones(16))
    coarse = torch.nn.functional.avg_pool2d
    assert coarse(built, 16).std() > 3 * coarse(fine, 16).std()
    assert torch.equal(
        noise.multires_noise(fine, 6, 0.5, seeded(1)), noise.multires_noise(fine, 6, 0.5, seeded(1))
    )


def test_multi_resolution_noise_with_discount_zero_is_plain_noise():
    fine = torch.randn(2, 4, 16, 16, generator=seeded())
    torch.testing.assert_close(
        noise.multires_noise(fine, 4, 0.0, seeded()), fine / fine.std(dim=(1, 2, 3), keepdim=True)
    )


def test_input_perturbation_adds_noise_that_the_target_does_not_contain():
    built = objective(input_perturbation=0.1)
    x, e = torch.zeros(5, 4, 64, 64), torch.randn(5, 4, 64, 64, generator=seeded())
    more = built.noisy(x, e, LEVELS, seeded(1)) - objective().noisy(x, e, LEVELS, seeded(1))
    expected = 0.1 * (1 - ALPHAS[LEVELS]).sqrt()
    torch.testing.assert_close(more.std(dim=(1, 2, 3)), expected, rtol=0.02, atol=1e-4)
    assert torch.equal(built.target(x, e, LEVELS), e)


@pytest.mark.parametrize(
    ("settings", "share_below"),
    [
        ({}, lambda u: u),
        ({"timestep_distribution": "logit_normal"}, lambda u: _normal_below(math.log(u / (1 - u)))),
        (
            {"timestep_distribution": "logit_normal", "timestep_location": -1.0, "timestep_scale": 0.5},
            lambda u: _normal_below((math.log(u / (1 - u)) + 1) / 0.5),
        ),
        ({"timestep_distribution": "cubic_low"}, lambda u: u ** (1 / 3)),
        ({"timestep_distribution": "cubic_high"}, lambda u: 1 - (1 - u) ** (1 / 3)),
    ],
    ids=["uniform", "logit_normal", "moved", "cubic_low", "cubic_high"],
)
@pytest.mark.parametrize(("low", "high"), [(0, 999), (200, 599)])
def test_timesteps_follow_their_distribution(settings: dict, share_below, low: int, high: int):
    drawn = objective(**settings, timestep_min=low, timestep_max=high).timesteps(40_000, seeded()).float()
    assert low <= drawn.min()
    assert drawn.max() <= high
    for u in (0.1, 0.25, 0.5, 0.75, 0.9):
        share = float((drawn < low + u * (high - low + 1)).float().mean())
        assert share == pytest.approx(share_below(u), abs=0.01)


def _normal_below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_a_range_of_timesteps_must_not_be_empty():
    with pytest.raises(ConfigError, match="exceeds timestep_max 500; lower it"):
        TrainConfig(timestep_min=600, timestep_max=500)


@given(st.floats(1e-3, 10), st.floats(-20, 20))
def test_robust_losses_are_pseudo_huber(delta: float, distance: float):
    d = torch.full((1, 1, 1, 1), distance, dtype=torch.float64)
    root = math.sqrt(distance**2 + delta**2) - delta
    for kind, expected in (("mse", distance**2), ("huber", 2 * delta * root), ("smooth_l1", 2 * root)):
        robust = objective(loss=kind, huber_delta=delta, huber_schedule="constant")
        error = robust.error(d, torch.zeros_like(d), torch.tensor([500]))
        assert float(error) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_a_small_error_counts_as_its_square_and_a_large_one_linearly():
    built = objective(loss="huber", huber_delta=1.0, huber_schedule="constant")
    zero = torch.zeros(1, 1, 1, 1)
    assert float(built.error(zero + 1e-3, zero, LEVELS[:1])) == pytest.approx(1e-6, rel=1e-3)
    far = [float(built.error(zero + x, zero, LEVELS[:1])) for x in (1000.0, 2000.0)]
    assert far[1] / far[0] == pytest.approx(2, rel=1e-2)


def test_the_delta_of_robust_losses_follows_its_schedule():
    exponential = objective(huber_schedule="exponential", huber_delta=0.1).delta(torch.tensor([0, 500, 999]))
    assert exponential.tolist() == pytest.approx([1.0, math.sqrt(0.1), 0.1**0.999])
    sigma = ((1 - ALPHAS[LEVELS]) / ALPHAS[LEVELS]).sqrt()
    torch.testing.assert_close(
        objective(huber_schedule="snr", huber_delta=0.1).delta(LEVELS), 0.9 / (1 + sigma) ** 2 + 0.1
    )
    assert torch.equal(
        objective(huber_schedule="constant", huber_delta=0.3).delta(LEVELS), torch.full((5,), 0.3)
    )


def test_a_masked_loss_is_weighted_by_the_mask():
    wrong, right = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :, :4], mask[1] = 1.0, 0.25
    whole = objective(mask_normalisation="none").error(wrong, right, LEVELS[:2], mask)
    assert whole.tolist() == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize("loss", ["mse", "huber", "smooth_l1"])
def test_a_masked_loss_is_the_mean_over_the_masks_area(loss: str):
    generator = torch.Generator().manual_seed(0)
    wrong, right = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(4, 1, 8, 8)
    mask[0, :, 2:4, 3:5], mask[1], mask[2, :, :, :4] = 1.0, 0.25, 0.5  # the last one is black everywhere
    area = objective(loss=loss)
    losses = area.error(wrong, right, LEVELS[:4], mask)
    whole = area.error(wrong, right, LEVELS[:4])
    small = area.error(wrong[:1, :, 2:4, 3:5], right[:1, :, 2:4, 3:5], LEVELS[:1])
    half = area.error(wrong[2:3, :, :, :4], right[2:3, :, :, :4], LEVELS[2:3])
    assert losses.tolist() == pytest.approx([small.item(), whole[1].item(), half.item(), 0.0], rel=1e-5)
    assert torch.equal(area.error(wrong, right, LEVELS[:4], torch.ones(4, 1, 8, 8)), whole)


def test_a_mask_of_less_than_one_cell_gives_no_larger_gradient_than_one_cell():
    wrong, right, mask = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[0, 0, 0, 0] = 1 / 255
    assert objective().error(wrong, right, LEVELS[:1], mask).item() == pytest.approx(1 / 255)


def first_row(mask: Image.Image | None) -> list[int]:
    """Values of a mask's first 256 pixels."""
    assert mask is not None
    return list(mask.crop((0, 0, 256, 1)).tobytes())


def art(folder: Path) -> Path:
    """A picture 256 x 128 with a mask of its left half, and one with a transparent right half."""
    folder.mkdir()
    Image.new("RGB", (256, 128), "red").save(folder / "a.png")
    half = Image.new("L", (256, 128))
    half.paste(255, (0, 0, 128, 128))
    half.save(folder / "a.mask.png")
    clear = Image.new("RGBA", (256, 128), (0, 0, 255, 255))
    clear.putalpha(half)
    clear.save(folder / "b.png")
    (folder / "masks").mkdir()
    half.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "masks" / "b.png")
    return folder


def test_a_mask_is_found_beside_its_picture_and_is_not_a_picture_of_the_set(tmp_path: Path):
    items = {item.name: item for item in scan(art(tmp_path / "art")).items}
    assert set(items) == {"a.png", "b.png"}
    by_file, by_alpha = TrainConfig(mask="file"), TrainConfig(mask="alpha")
    left, right = [255] * 128 + [0] * 128, [0] * 128 + [255] * 128
    assert first_row(mask_of(by_file, items["a.png"])) == left
    assert first_row(mask_of(by_file, items["b.png"])) == right
    assert mask_of(by_alpha, items["a.png"]) is None
    assert first_row(mask_of(by_alpha, items["b.png"])) == left
    assert mask_of(TrainConfig(), items["a.png"]) is None


def test_a_mask_is_cropped_and_mirrored_with_its_picture(tmp_path: Path):
    item = scan(art(tmp_path / "art")).items[0]
    mask = mask_of(TrainConfig(mask="file"), item)
    assert mask is not None
    # The picture is twice as wide as high. A square bucket shows its middle, where the mask's edge is.
    variant = Augmentation(placement=place(256, 128, [(64, 64)], step=64))
    weights = mask_weights(mask, variant, cell=8, outside=0.2)
    expected = np.array([[1.0] * 4 + [0.2] * 4] * 8)
    assert weights.shape == (8, 8)
    assert np.abs(weights - expected)[:, [0, 1, 2, 5, 6, 7]].max() < 0.02
    mirrored = mask_weights(
        mask, Augmentation(placement=variant.placement, is_mirrored=True), cell=8, outside=0.2
    )
    assert np.abs(mirrored - weights[:, ::-1]).max() < 1e-6


@pytest.mark.parametrize(("count", "repeats"), [(3, 8), (24, 1), (40, 1)])
def test_class_pictures_occur_as_often_as_training_pictures(tmp_path: Path, count: int, repeats: int):
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number:02d}.png")
    (folder / "00.txt").write_text("a red square")
    config = TrainConfig(prior_folder=str(folder), prior_caption="a square", prior_weight=0.5, trigger="ink")
    manifest = with_class_and_validation(scan(INK, trigger="ink"), config)
    of_class = [item for item in manifest.items if item.role == "class"]
    assert sum(item.repeats for item in of_class) == 24
    assert {item.repeats for item in of_class} == {repeats}
    assert all(item.weight == 0.5 for item in of_class)
    assert [item.caption for item in of_class][:2] == ["a red square", "a square"]


def test_a_preset_doubles_the_steps_of_a_training_with_class_pictures():
    own_values: tuple[dict, ...] = ({}, {"prior_folder": "cats"})
    alone, together = (preset_values("style", 24, values)["steps"] for values in own_values)
    assert together == 2 * alone


def test_a_class_folder_without_pictures_is_rejected(tmp_path: Path):
    with pytest.raises(DatasetError, match="holds no picture"):
        with_class_and_validation(scan(INK), TrainConfig(prior_folder=str(tmp_path)))
