"""Effects of settings on a training of one or two steps with the bundled base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import INK, MODELS
from tests.trainer.test_train import make
from trainer.runs import events, run
from trainer.train import train
from trainer.training import checkpoint as state

pytestmark = pytest.mark.usefixtures("shared_cache")

# No warm-up, so that the first step has the full learning rate.
ONE_STEP = {"steps": 1, "warmup_steps": 0, "thumbnail": "none"}


def train_one_step(path: Path, pictures: Path = INK, **settings) -> run.Run:
    finished = make(path, pictures, **{**ONE_STEP, **settings})
    assert train(finished, MODELS) == "finished"
    return finished


def picture_with_caption(folder: Path, caption: str) -> Path:
    folder.mkdir()
    shutil.copy(INK / "owl.png", folder)
    (folder / "owl.txt").write_text(caption)
    return folder


def trained_weights(finished: run.Run) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint."""
    return load_file(state.checkpoints(finished)[0] / "adapter.safetensors")


def loss_of(finished: run.Run) -> float:
    (loss,) = (event["loss"] for event in events.read(finished.events)[0] if event["kind"] == "step")
    return loss


def problems_of(finished: run.Run) -> list[str]:
    return [event["message"] for event in events.read(finished.events)[0] if event["kind"] == "problem"]


@pytest.mark.parametrize(("limit", "is_clipped"), [(1e-3, True), (0.0, False)])
def test_max_grad_norm_limits_the_norm_of_the_gradient(tmp_path: Path, limit: float, is_clipped: bool):
    """SGD at rate 1 moves the weights by the gradient, which only the matrices B have in the first step."""
    sgd = {"optimizer": "custom", "optimizer_class": "torch.optim.SGD", "learning_rate": 1.0}
    finished = train_one_step(tmp_path / "run", **sgd, weight_decay=0.0, max_grad_norm=limit)
    ups = [tensor for name, tensor in trained_weights(finished).items() if name.endswith(".up")]
    norm = float(torch.cat([tensor.flatten() for tensor in ups]).norm())
    if is_clipped:
        assert norm == pytest.approx(limit, rel=1e-3)
    else:
        assert norm > 5e-3


def test_each_part_has_its_own_alpha_and_learning_rate(tmp_path: Path):
    """The first step of AdamW moves a weight by the learning rate, whatever the size of its gradient."""
    rates = {"unet": 1e-2, "text_encoder": 1e-3, "text_encoder_2": 1e-4}
    finished = train_one_step(
        tmp_path / "run",
        train_text_encoder_1=True,
        train_text_encoder_2=True,
        text_encoder_1_alpha=3.0,
        text_encoder_2_alpha=5.0,
        learning_rate=rates["unet"],
        text_encoder_1_learning_rate=rates["text_encoder"],
        text_encoder_2_learning_rate=rates["text_encoder_2"],
    )
    weights = trained_weights(finished)
    for part, rate in rates.items():
        ups = [weights[name] for name in weights if name.startswith(f"{part}/") and name.endswith(".up")]
        assert max(float(up.abs().max()) for up in ups) == pytest.approx(rate, rel=0.02)
    in_file = load_file(finished.lora_file)
    for prefix, alpha in (("lora_te1_", 3.0), ("lora_te2_", 5.0)):
        alphas = {float(in_file[name]) for name in in_file if name.startswith(prefix) and "alpha" in name}
        assert alphas == {alpha}


def test_a_truncated_caption_is_reported_in_every_run_with_the_text_that_is_not_read(tmp_path: Path):
    pictures = picture_with_caption(tmp_path / "art", ", ".join(["a red apple"] * 30) + ", the end")
    trained = {"train_text_encoder_1": True}
    for name, settings in (("first", {}), ("cached", {}), ("encoder", trained)):
        run = train_one_step(tmp_path / name, pictures, **settings)
        (message,) = [message for message in problems_of(run) if "tokens too long" in message]
        assert "the end”" in message


def test_caption_windows_include_the_end_of_a_long_caption(tmp_path: Path):
    pictures = picture_with_caption(tmp_path / "art", ", ".join(["a red apple"] * 30))
    short = train_one_step(tmp_path / "short", pictures, caption_windows=1)
    long = train_one_step(tmp_path / "long", pictures, caption_windows=2)
    assert [message for message in problems_of(short) if "tokens too long" in message]
    assert not [message for message in problems_of(long) if "tokens too long" in message]
    assert loss_of(long) != pytest.approx(loss_of(short), rel=1e-4)


def test_weighted_captions_read_brackets_as_emphasis(tmp_path: Path):
    """Emphasis of 1 is none, so the loss is that of the plain caption; as text the brackets change it."""
    plain = picture_with_caption(tmp_path / "plain", "a red apple")
    brackets = picture_with_caption(tmp_path / "brackets", "a (red:1.0) apple")
    strong = picture_with_caption(tmp_path / "strong", "a (red:3.0) apple")
    expected = loss_of(train_one_step(tmp_path / "a", plain, weighted_captions=True))
    weighted = loss_of(train_one_step(tmp_path / "b", brackets, weighted_captions=True))
    as_text = loss_of(train_one_step(tmp_path / "c", brackets, weighted_captions=False))
    emphasised = loss_of(train_one_step(tmp_path / "d", strong, weighted_captions=True))
    assert weighted == pytest.approx(expected, rel=1e-5)
    assert as_text != pytest.approx(expected, rel=1e-4)
    assert emphasised != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("is_saved", [True, False])
def test_captions_are_in_the_file_only_if_save_captions_is_set(tmp_path: Path, is_saved: bool):
    pictures = picture_with_caption(tmp_path / "art", "an owl, at night")
    finished = train_one_step(tmp_path / "run", pictures, save_captions=is_saved)
    with safe_open(finished.lora_file, framework="pt") as file:
        metadata = file.metadata()
    assert any("at night" in value for value in metadata.values()) is is_saved
    if is_saved:
        assert json.loads(metadata["ss_tag_frequency"]) == {"art": {"an owl": 1, "at night": 1}}
    else:
        assert "ss_tag_frequency" not in metadata


def test_the_reported_loss_is_the_mean_over_the_pictures_of_a_batch_that_is_not_full(tmp_path: Path):
    """The batch has one picture, with the same noise and timestep, whatever its size."""
    pictures = picture_with_caption(tmp_path / "art", "an owl")
    plain = {"caption_dropout": 0.0, "snr_weighting": "none"}
    runs = [
        train_one_step(tmp_path / f"{batch}-{parts}", pictures, batch=batch, accumulation=parts, **plain)
        for batch, parts in ((1, 1), (4, 1))
    ]
    assert loss_of(runs[0]) == pytest.approx(loss_of(runs[1]), rel=1e-5)


def test_buckets_smaller_than_the_batch_are_reported_in_every_run(tmp_path: Path):
    pictures = picture_with_caption(tmp_path / "art", "an owl")
    for name in ("a", "b"):
        finished = train_one_step(tmp_path / name, pictures)
        assert [text for text in problems_of(finished) if "64x64 (1); " in text]


def test_a_warm_up_that_is_longer_than_the_training_is_reported_with_its_effect(tmp_path: Path):
    finished = make(tmp_path / "run", steps=2, warmup_steps=5)
    assert train(finished, MODELS) == "finished"
    (message,) = problems_of(finished)
    assert "warmup_steps 5" in message
    assert "learning rate rises until the last step" in message


def test_a_training_continues_with_the_captions_masks_and_pictures_that_it_began_with(tmp_path: Path):
    folder = tmp_path / "art"
    folder.mkdir()
    for name in ("owl", "star"):
        shutil.copy(INK / f"{name}.png", folder)
        (folder / f"{name}.txt").write_text(f"a {name}")
    masks = np.zeros((512, 512), np.uint8)
    masks[:, 100:300] = 255
    Image.fromarray(masks).save(folder / "owl.mask.png")
    settings = {"steps": 2, "checkpoint_every": 1, "mask": "file"}
    whole = make(tmp_path / "whole", folder, **settings)
    assert train(whole, MODELS) == "finished"
    shutil.copytree(whole.path, tmp_path / "continued")
    continued = run.Run(tmp_path / "continued")
    shutil.rmtree(continued.checkpoints / "step-2")
    Image.fromarray(255 - masks).save(folder / "owl.mask.png")
    (folder / "owl.txt").write_text("a red owl")
    (folder / "star.png").unlink()
    assert train(continued, MODELS) == "finished"
    before, after = trained_weights(whole), trained_weights(continued)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    (message,) = [text for text in problems_of(continued) if "since this training began" in text]
    assert all(part in message for part in ("captions of owl.png", "masks of owl.png", "star.png is missing"))


def test_a_mask_of_a_picture_outside_its_blob_changes_nothing_that_is_trained(tmp_path: Path):
    """A white blob on a transparent page and the same blob on black train the same weights."""
    learned = {}
    for kind, ground in (("transparent", (0, 0, 0, 0)), ("black", (0, 0, 0, 255))):
        pictures = picture_with_caption(tmp_path / kind, "an owl")
        mask = Image.new("RGBA", (512, 512), ground)
        mask.paste((255, 255, 255, 255), (100, 100, 300, 300))
        mask.save(pictures / "owl.mask.png")
        learned[kind] = trained_weights(train_one_step(tmp_path / f"{kind}-run", pictures, mask="file"))
    unmasked = train_one_step(tmp_path / "none-run", pictures)
    learned["none"] = trained_weights(unmasked)
    assert [text for text in problems_of(unmasked) if "mask files of owl.png are not used" in text]
    assert all(torch.equal(learned["black"][name], tensor) for name, tensor in learned["transparent"].items())
    assert any(not torch.equal(learned["none"][name], tensor) for name, tensor in learned["black"].items())
