"""How well pictures set aside are predicted: a curve while training, and advice from it at the end.

Noise levels and noise are the same each time, so that two measurements differ by the adapter alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from trainer.adapter.lora import Adapter
from trainer.lora_file.writer import save_lora
from trainer.runs import events
from trainer.runs.run import Run
from trainer.sdxl.text import Conditioning
from trainer.sdxl.unet import predict
from trainer.training import checkpoint as state
from trainer.training import noise
from trainer.training.examples import LatentDataset
from trainer.training.objective import Objective
from trainer.training.text_conditioning import TextConditioner

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_LEVELS = 8
_RISES = 3  # measurements above the lowest before a warning
_NOTABLE = 1.01  # times the lowest: less is noise of the measurement
WORST = 1e9  # a loss that is no number any more: worse than all others, and writable as JSON


class Validation:
    """ImageMetrics with the models that train; what was measured before a run was resumed is read from its events."""

    def __init__(
        self,
        run: Run,
        pictures: LatentDataset,
        captions: list[str],
        objective: Objective,
        texts: TextConditioner,
        unet: Any,
        adapter: Adapter,
        first: int,
    ) -> None:
        self.run, self.pictures, self.captions, self.objective = run, pictures, captions, objective
        self.texts, self.unet, self.adapter = texts, unet, adapter
        said = events.read(run.events)[0] if pictures.items else []
        # A killed run may have measured beyond the checkpoint that it goes on from.
        self.curve: dict[int, float] = {
            e["step"]: e["loss"] for e in said if e["kind"] == "validation" and e["step"] <= first
        }

    @property
    def is_on(self) -> bool:
        return bool(self.pictures.items)

    @property
    def best_step(self) -> int | None:
        """The step, after the start, with the lowest loss."""
        return min((step for step in self.curve if step), key=lambda step: self.curve[step], default=None)

    def measure(self, step: int) -> None:
        """Tells the loss after `step` steps, and once when it has been rising."""
        self.curve[step] = self.loss()
        self.run.emit("validation", step=step, loss=self.curve[step])
        if (
            overtrained_since(self.curve) is not None
            and overtrained_since({s: v for s, v in self.curve.items() if s != step}) is None
        ):
            message = f"pictures set aside have been predicted worse since step {self.best_step}: yours may be learnt by heart from there on"
            self.run.emit("problem", message=message)

    @torch.no_grad()
    def loss(self, strength: float = 1.0) -> float:
        """Mean squared error over all pictures and levels, unweighted, at a strength of the adapter."""
        with self.adapter.at(strength):
            errors = [self._error(number) for number in range(len(self.pictures.items))]
        mean = float(torch.cat(errors).double().mean())
        return mean if math.isfinite(mean) else WORST

    def _error(self, number: int) -> torch.Tensor:
        """Of one picture at each level (levels,)."""
        config, objective, unet = self.objective.config, self.objective, self.unet
        shown = self.pictures.shown[number][0]
        span = config.timestep_max - config.timestep_min + 1
        levels = config.timestep_min + (torch.arange(_LEVELS) * 2 + 1) * span // (2 * _LEVELS)
        latents = (shown.mean * self.pictures.scaling).expand(_LEVELS, -1, -1, -1)
        drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number))
        noisy = noise.add_noise(latents, drawn, levels, objective.alphas_cumprod)
        answer = objective.target(latents, drawn, levels)
        text = self.texts.of([self.captions[number]]).to(unet.device, unet.dtype)
        time_ids = self.pictures.draw([number], 0, 0).time_ids().to(unet.device, unet.dtype)
        errors = []
        for rows in torch.arange(_LEVELS).split(config.batch):
            repeated = Conditioning(
                text.text_NTD.expand(len(rows), -1, -1), text.pooled_NP.expand(len(rows), -1)
            )
            seen = noisy[rows].to(unet.device, unet.dtype)
            timesteps = levels[rows].to(unet.device)
            said = predict(unet, seen, timesteps, repeated, time_ids.expand(len(rows), -1))
            errors.append((said.float().cpu() - answer[rows]).square().mean(dim=(1, 2, 3)))
        return torch.cat(errors)

    def advice(self, step: int) -> dict[str, Any]:
        """Which step's weights, and which strength of those after `step`, predict the pictures set aside best; in a sentence too."""
        losses = {strength: self.loss(strength) for strength in STRENGTHS}
        strength = min(losses, key=lambda tried: losses[tried])
        best = self.best_step or step
        words = f"the pictures set aside are predicted best at strength {strength:g}"
        is_kept = (self.run.checkpoints / f"step-{best}").is_dir()
        if best != step and is_kept and self.curve[best] * _NOTABLE < losses[1.0]:
            words += f", and better still by the weights of step {best}, which are kept in {self.run.config.name}-step-{best}.safetensors"
        else:
            best = step
        return {
            "step": best,
            "strength": strength,
            "losses": {f"{s:g}": value for s, value in losses.items()},
            "message": words,
        }


def save_step(run: Run, step: int, adapter: Adapter, facts: dict[str, str], *, form: str) -> None:
    """The weights of an earlier checkpoint as a file of their own; the adapter is itself again afterwards."""
    final = adapter.tensors()
    try:
        state.load_adapter(run.checkpoints / f"step-{step}", adapter)
        save_lora(
            run.path / f"{run.config.name}-step-{step}.safetensors",
            adapter,
            {**facts, "ss_steps": str(step)},
            format=form,
        )
    except (OSError, ValueError, KeyError):  # it costs the advice, never the file of the training
        run.emit(
            "problem",
            message=f"the weights of step {step} can't be read any more, so they have no file of their own",
        )
    finally:
        adapter.load(final)


def overtrained_since(curve: dict[int, float]) -> int | None:
    """The step of the lowest loss when the last measurements, three or more, all lie notably above it; None otherwise."""
    steps = sorted(curve)
    if not steps:
        return None
    best = min(steps, key=lambda step: curve[step])
    later = steps[steps.index(best) + 1 :]
    return (
        best
        if len(later) >= _RISES and all(curve[step] > _NOTABLE * curve[best] for step in later[-_RISES:])
        else None
    )
