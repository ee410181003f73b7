"""Validation loss on images that are not trained: a curve during the training, and advice from it at the end.

Timesteps and noise are the same in each measurement, so that two measurements differ only by the adapter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.adapter.lora import Adapter
from trainer.lora_file.writer import save_lora
from trainer.runs import events
from trainer.runs.run import Run
from trainer.sdxl.text import Conditioning
from trainer.sdxl.unet import predict
from trainer.training import noise
from trainer.training.checkpoint import load_adapter
from trainer.training.examples import LatentDataset
from trainer.training.setup import Setup

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_LEVELS = 8  # timesteps at which each image is measured
_RISES = 3  # measurements above the lowest before a warning
_NOTABLE = 1.01  # times the lowest; a smaller difference is noise of the measurement
WORST = 1e9  # stands for a NaN or infinite loss: higher than all others, and JSON can hold it


class Validation:
    """Measures the loss with the models that are trained."""

    def __init__(self, run: Run, setup: Setup, dataset: LatentDataset, first_step: int) -> None:
        """Reads the measurements of earlier processes of a resumed run from its events.

        Args:
            dataset: the validation images; without any, validation is off.
            first_step: the step that the run resumes from. A killed run may have measured beyond its last
                checkpoint; later measurements are ignored.
        """
        self.run, self.setup, self.dataset = run, setup, dataset
        self.captions = [setup.captions.fixed(item) for item in dataset.items]
        past = events.read(run.events)[0] if self.is_on else []
        self.curve: dict[int, float] = {
            event["step"]: event["loss"]
            for event in past
            if event["kind"] == "validation" and event["step"] <= first_step
        }

    @property
    def is_on(self) -> bool:
        """True if the run has validation images."""
        return bool(self.dataset.items)

    def is_due(self, step: int) -> bool:
        """Returns True when the loss must be measured after `step` steps."""
        config = self.setup.config
        return self.is_on and (step % config.validation_every == 0 or step == config.steps)

    @property
    def best_step(self) -> int | None:
        """The step after the start with the lowest loss."""
        return min((step for step in self.curve if step), key=lambda step: self.curve[step], default=None)

    def measure(self, step: int) -> float:
        """Emits and returns the loss after `step` steps; emits a problem once when it has been rising."""
        earlier = dict(self.curve)
        earlier.pop(step, None)
        self.curve[step] = self.loss()
        self.run.emit("validation", step=step, loss=self.curve[step])
        if overtrained_since(self.curve) is not None and overtrained_since(earlier) is None:
            message = (
                f"the validation loss has been rising since step {self.best_step}: "
                "the training probably memorises its images from there on"
            )
            self.run.emit("problem", message=message)
        return self.curve[step]

    @torch.no_grad()
    def loss(self, strength: float = 1.0) -> float:
        """Returns the unweighted mean squared error over all images and timesteps at a strength."""
        with self.setup.adapter.at(strength):
            errors = [self._error(number) for number in range(len(self.dataset.items))]
        mean = float(torch.cat(errors).double().mean())
        return mean if math.isfinite(mean) else WORST

    def _error(self, number: int) -> torch.Tensor:
        """Returns the squared error of one image at each timestep (levels,)."""
        setup, objective, unet = self.setup, self.setup.objective, self.setup.unet
        config, device, dtype = setup.config, unet.device, unet.dtype
        example = self.dataset.examples[number][0]
        span = config.timestep_max - config.timestep_min + 1
        timesteps = config.timestep_min + (torch.arange(_LEVELS) * 2 + 1) * span // (2 * _LEVELS)
        latents = (example.mean * self.dataset.scaling).expand(_LEVELS, -1, -1, -1)
        noise_NCHW = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number))
        noisy_latents = noise.add_noise(latents, noise_NCHW, timesteps, objective.alphas_cumprod)
        target = objective.target(latents, noise_NCHW, timesteps)
        text = setup.conditioner.encode([self.captions[number]]).to(device, dtype)
        time_ids = self.dataset.batch([number], 0, 0).time_ids().to(device, dtype)
        errors = []
        for rows in torch.arange(_LEVELS).split(config.batch):
            count = len(rows)
            conditioning = Conditioning(text.text_NTD.expand(count, -1, -1), text.pooled_NP.expand(count, -1))
            inputs = noisy_latents[rows].to(device, dtype)
            levels = timesteps[rows].to(device)
            prediction = predict(unet, inputs, levels, conditioning, time_ids.expand(count, -1))
            errors.append((prediction.float().cpu() - target[rows]).square().mean(dim=(1, 2, 3)))
        return torch.cat(errors)

    def advice(self, step: int) -> dict[str, Any]:
        """Returns the fields of the `advice` event: step and strength with the lowest validation loss.

        Args:
            step: the last step, with whose weights the strengths are measured.
        """
        losses = {strength: self.loss(strength) for strength in STRENGTHS}
        strength = min(losses, key=lambda tried: losses[tried])
        best = self.best_step or step
        message = f"the validation loss is lowest at strength {strength:g}"
        is_stored = (self.run.checkpoints / f"step-{best}").is_dir()
        if best != step and is_stored and self.curve[best] * _NOTABLE < losses[1.0]:
            file = step_file_name(self.run, best)
            message += f", and lower still with the weights of step {best}, which are stored in {file}"
        else:
            best = step
        return {
            "step": best,
            "strength": strength,
            "losses": {f"{s:g}": value for s, value in losses.items()},
            "message": message,
        }


def step_file_name(run: Run, step: int) -> str:
    """Returns the name of the LoRA file with the weights of an earlier step."""
    return f"{run.config.name}-step-{step}.safetensors"


def save_step(run: Run, step: int, adapter: Adapter, metadata: dict[str, str]) -> None:
    """Saves the weights of an earlier checkpoint as a LoRA file, and restores the adapter's own."""
    final = adapter.tensors()
    try:
        load_adapter(run.checkpoints / f"step-{step}", adapter)
        file = run.path / step_file_name(run, step)
        save_lora(file, adapter, {**metadata, "ss_steps": str(step)}, format=run.config.format)
    except (OSError, ValueError, KeyError, SafetensorError):  # must not cost the file of the training
        message = f"the weights of step {step} can't be read, so they have no file of their own"
        run.emit("problem", message=message)
    finally:
        adapter.load(final)


def overtrained_since(curve: dict[int, float]) -> int | None:
    """Returns the step of the lowest loss when the last three measurements are notably above it."""
    if not curve:
        return None
    steps = sorted(curve)
    best = min(steps, key=lambda step: curve[step])
    later = steps[steps.index(best) + 1 :]
    is_rising = len(later) >= _RISES and all(curve[step] > _NOTABLE * curve[best] for step in later[-_RISES:])
    return best if is_rising else None
