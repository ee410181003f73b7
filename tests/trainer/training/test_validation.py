"""The loss on validation images, and the advice on strength and step that is derived from it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import INK, MODELS
from tests.trainer.test_train import make
from trainer.config import TrainConfig
from trainer.dataset.scan import scan
from trainer.dataset.sources import with_class_and_validation
from trainer.errors import ConfigError, DatasetError
from trainer.runs import events, run
from trainer.train import train
from trainer.training import checkpoint as state
from trainer.training.validation import WORST, overtrained_since
from ui.store.runs import run_status
from ui.text import Words
from ui.views.progress import status_words

pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> run.Run:
    """A training with so high a rate that the validation loss soon grows; TensorBoard records it."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / ".cache").symlink_to(warm_cache)
    new_run = make(
        folder / "run",
        steps=8,
        validation_share=0.1,
        validation_every=1,
        learning_rate=0.3,
        warmup_steps=4,
        keep_checkpoints=1,
        log_with="tensorboard",
    )
    assert train(new_run, MODELS) == "finished"
    return new_run


def events_of(source: run.Run, kind: str) -> list[dict]:
    return [event for event in events.read(source.events)[0] if event["kind"] == kind]


def test_the_validation_loss_is_measured_from_the_base_on(measured: run.Run):
    assert [event["step"] for event in events_of(measured, "validation")] == list(range(9))
    assert len(measured.manifest.validation_items) == 2
    assert len(measured.manifest.training_items) == 22


def test_the_advice_agrees_with_the_measured_losses(measured: run.Run):
    curve = {event["step"]: event["loss"] for event in events_of(measured, "validation")}
    (advice,) = events_of(measured, "advice")
    assert advice["losses"]["0"] == pytest.approx(curve[0], rel=1e-6)  # strength 0 is the base
    assert advice["losses"]["1"] == pytest.approx(curve[8], rel=1e-6)
    assert advice["strength"] == float(min(advice["losses"], key=lambda s: advice["losses"][s]))
    assert advice["step"] == min((step for step in curve if step), key=lambda step: curve[step])


def test_the_page_shows_the_curve_and_the_advice(measured: run.Run):
    written = events.read(measured.events)[0]
    view = events.fold(events.View(), [*written, {"kind": "ended", "how": "finished"}])
    assert [step for step, _ in view.validation] == list(range(9))
    assert "at strength" in view.advice
    assert f"Advice: {view.advice}." in status_words(run_status(view, False, None), Words())
    resumed = events.fold(view, [{"kind": "validation", "step": 5, "loss": 0.5}])  # from step 4
    assert resumed.validation == (*view.validation[:5], (5, 0.5))


def test_overtraining_is_reported_once_and_the_best_weights_are_saved(measured: run.Run):
    best = events_of(measured, "advice")[0]["step"]
    assert best < 8
    warnings = [
        event["message"] for event in events_of(measured, "problem") if "memorises" in event["message"]
    ]
    assert len(warnings) == 1
    assert f"step {best}:" in warnings[0]
    assert {path.name for path in state.checkpoints(measured)} == {"step-8", f"step-{best}"}
    best_file = load_file(measured.path / f"lora-step-{best}.safetensors")
    checkpoint = load_file(measured.checkpoints / f"step-{best}" / "adapter.safetensors")
    ups = [tensor.half() for name, tensor in checkpoint.items() if name.endswith(".up")]
    in_file = [tensor for name, tensor in best_file.items() if name.endswith("lora_up.weight")]
    assert len(ups) == len(in_file)
    assert all(any(torch.equal(up, tensor) for tensor in in_file) for up in ups[:5])


def test_tensorboard_records_loss_rate_and_validation_loss(measured: run.Run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {
        path.parent
        for path in measured.path.rglob("events.out.tfevents*")
        if len(path.parent.relative_to(measured.path).parts) == 1
    }
    recorded = EventAccumulator(str(folder)).Reload()
    losses = {event.step: event.value for event in recorded.Scalars("loss")}
    assert losses == pytest.approx(
        {event["step"]: event["loss"] for event in events_of(measured, "step")}, rel=1e-5
    )
    assert [event.step for event in recorded.Scalars("validation_loss")] == list(range(1, 9))
    assert len(recorded.Scalars("learning_rate")) == 8


@pytest.mark.parametrize(
    ("losses", "since"),
    [
        ([], None),
        ([1.0, 0.9, 0.8, 0.7], None),
        ([1.0, 0.8, 0.9, 0.9], None),
        ([1.0, 0.8, 0.9, 0.9, 0.85], 1),
        ([1.0, 0.8, 0.9, 0.803, 0.9], None),
        ([0.5, 0.6, 0.7, 0.8], 0),
    ],
)
def test_three_losses_notably_above_the_lowest_mean_overtraining(losses: list[float], since: int | None):
    assert overtrained_since(dict(enumerate(losses))) == since


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 6), (0.5, 12)])
def test_the_validation_images_are_spread_over_the_set(share: float, count: int):
    manifest = with_class_and_validation(scan(INK), TrainConfig(validation_share=share))
    positions = [number for number, item in enumerate(manifest.items) if item.role == "validation"]
    assert len(positions) == len(manifest.validation_items) == count
    assert max((b - a for a, b in itertools.pairwise(positions)), default=0) <= -(-24 // count)
    assert with_class_and_validation(manifest, TrainConfig(validation_share=share)) == manifest


def test_a_folder_can_hold_the_validation_images(tmp_path: Path):
    shutil.copy(INK / "owl.png", tmp_path)
    manifest = with_class_and_validation(
        scan(INK), TrainConfig(validation_folder=str(tmp_path), trigger="ink")
    )
    assert [(item.name, item.caption) for item in manifest.validation_items] == [("owl.png", "ink")]
    assert len(manifest.training_items) == 24


def test_validation_settings_that_can_not_be_met_are_rejected(tmp_path: Path):
    with pytest.raises(ConfigError, match="set only one of them"):
        TrainConfig(validation_share=0.1, validation_folder="x")
    shutil.copy(INK / "owl.png", tmp_path)
    with pytest.raises(DatasetError, match="can't be used for validation too"):
        with_class_and_validation(scan(tmp_path), TrainConfig(validation_share=0.1))


def test_a_validation_loss_that_is_not_finite_counts_as_the_worst(tmp_path, monkeypatch):
    """JSON has no infinity, so the event must hold a finite number."""
    new_run = make(tmp_path / "run", steps=2, validation_share=0.1, validation_every=1)
    monkeypatch.setattr(
        "trainer.training.validation.Validation._error", lambda self, number: torch.tensor([float("inf")])
    )
    assert train(new_run, MODELS) == "finished"
    assert {event["loss"] for event in events_of(new_run, "validation")} == {WORST}
