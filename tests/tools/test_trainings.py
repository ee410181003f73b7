"""Trainings of the bundled base: a resumed one has the same result, and batches depend on the step alone."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import train_decoder, train_diffusion, train_vae
from tools.learner import Learner
from tools.progress import load_state, save_state
from tools.train_diffusion import TrainingData

STEPS = 4


class StopError(Exception):
    """Ends a training in the middle, as a killed process would."""


def options_for(work: Path, **more: Any) -> Namespace:
    common = {"steps": STEPS, "muon_rate": 4e-3, "adam_rate": 1e-3, "save_every": 2, "batch": 2}
    return Namespace(work=work, **{**common, **more})


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 128, 128, 3), generator=generator, dtype=torch.uint8)


def diffusion_data() -> TrainingData:
    """Four images, two of them recoloured, with random latents and captions."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(49406, (4, 77), generator=generator) for _ in range(4)]
    for tokens in ids:
        tokens[:, 10] = 49407  # the end token, at which the text encoders pool
    return TrainingData(
        means=torch.randn(4, 4, 16, 16, generator=generator),
        deviations=torch.rand(4, 4, 16, 16, generator=generator),
        scale=0.5,
        ids=[(ids[0], ids[1]), (ids[2], ids[3])],
        empty=[torch.full((77,), 49407), torch.full((77,), 49407)],
        weights=torch.tensor([0.5, 0.5]),
    )


def train(kind: str, work: Path) -> Path:
    """Runs or resumes a training and returns the file of its state."""
    if kind == "diffusion":
        train_diffusion.train(diffusion_data(), options_for(work, recoloured=0.5))
    elif kind == "vae":
        train_vae.train(images(), options_for(work, batch=4))
    else:
        save_state(work / "vae.pt", 1, average=seeded_vae())
        train_decoder.train(images(), options_for(work))
    return work / f"{kind}.pt"


def seeded_vae() -> Any:
    torch.manual_seed(2)
    return train_vae.build_vae()


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Returns all tensors of a nested state, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=str)]
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("kind", ["vae", "decoder", "diffusion"])
def test_a_resumed_training_has_the_same_result(kind: str, tmp_path: Path, monkeypatch):
    whole = torch.load(train(kind, tmp_path / "whole"), weights_only=True)
    step = Learner.step

    def stopping(learner: Learner, number: int, loss: torch.Tensor, **more: float) -> None:
        if number == STEPS - 1:
            raise StopError
        step(learner, number, loss, **more)

    monkeypatch.setattr(Learner, "step", stopping)
    with pytest.raises(StopError):
        train(kind, tmp_path / "stopped")
    monkeypatch.setattr(Learner, "step", step)
    torch.manual_seed(99)  # the state of the global generator must not matter
    resumed = torch.load(train(kind, tmp_path / "stopped"), weights_only=True)
    assert whole["step"] == resumed["step"] == STEPS
    pairs = list(zip(tensors_of(whole), tensors_of(resumed), strict=True))
    assert len(pairs) > 100
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_batch_depends_on_its_step_alone():
    data, options = diffusion_data(), options_for(Path(), batch=6, recoloured=0.5)
    torch.manual_seed(3)
    first = data.batch(5, options, slice(6))
    torch.manual_seed(4)
    again, other = data.batch(5, options, slice(6)), data.batch(6, options, slice(6))
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.timesteps, again.timesteps)
    assert not torch.equal(first.noise, other.noise)


def test_processes_share_one_batch():
    data, options = diffusion_data(), options_for(Path(), batch=6, recoloured=0.5)
    whole = data.batch(5, options, slice(6))
    parts = [data.batch(5, options, slice(start, start + 3)) for start in (0, 3)]
    assert torch.equal(whole.latents, torch.cat([part.latents for part in parts]))
    assert torch.equal(whole.ids[1], torch.cat([part.ids[1] for part in parts]))
    assert torch.equal(whole.sizes, torch.cat([part.sizes for part in parts]))


def test_an_interrupted_write_leaves_the_earlier_state(tmp_path: Path):
    layer = torch.nn.Linear(2, 2)
    save_state(tmp_path / "a.pt", 3, layer=layer)

    class Broken:
        def state_dict(self) -> dict[str, Any]:
            raise StopError

    with pytest.raises(StopError):
        save_state(tmp_path / "a.pt", 4, layer=Broken())
    assert load_state(tmp_path / "a.pt", layer=layer) == 3
