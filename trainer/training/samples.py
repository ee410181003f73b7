"""Pictures that a training draws on its way and at its end, from prompts that may carry kohya's flags.

    a cat in the rain --n blurry --w 832 --h 1216 --d 7 --l 6.5 --s 24

--n negative prompt, --w and --h px, --d seed, --l guidance scale, --s steps.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from trainer.adapter.lora import Adapter
from trainer.config import TrainConfig
from trainer.dataset.manifest import Manifest
from trainer.errors import ConfigError, lacks_memory
from trainer.runs.run import Run
from trainer.sampling.images import GeneratedImage, save_image, save_strip
from trainer.sampling.sampler import SamplingConfig, conditioner, draw, rows_per_pass
from trainer.sampling_config import (
    NO_LIMITS,
    PROMPTS,
    STRENGTHS,
    SamplingLimits,
    parse_prompt_line,
    picture_name,
)
from trainer.sdxl.base import Base
from trainer.sdxl.schedulers import training_scheduler
from trainer.sdxl.unet import eval_mode
from trainer.training.text_conditioning import TextConditioner


def sample_configs(config: TrainConfig, manifest: Manifest, base: Base) -> list[tuple[int, SamplingConfig]]:
    """What to draw, as (number of its first prompt, request): the user's prompts, or four captions spread over the set.

    Neighbours that differ only in their prompt are drawn together. Raises ConfigError for a flag that is not understood.
    """
    captions = list(dict.fromkeys(item.caption for item in manifest.items if item.role == "train"))
    lines = config.sample_prompts or captions[:: max(1, len(captions) // PROMPTS)][:PROMPTS]
    requests: list[tuple[int, SamplingConfig]] = []
    for number, line in enumerate(lines):
        # A prompt's own seed is `seed + its place`, so that prompts without a flag differ in their noise.
        text, flags = parse_prompt_line(line) if config.sample_prompts else (line, {})
        request = SamplingConfig(
            prompts=(text,), steps=config.sample_steps, seed=config.seed + number, strengths=(1.0,)
        )
        request = dataclasses.replace(request, **flags)
        _check_size(request, base)
        if requests and "seed" not in flags:
            first, before = requests[-1]
            joined = dataclasses.replace(before, prompts=(*before.prompts, text))
            if (
                dataclasses.replace(request, prompts=joined.prompts, seed=before.seed) == joined
                and before.seed == config.seed + first
            ):
                requests[-1] = (first, joined)
                continue
        requests.append((number, request))
    return requests


def sample_prompts_of(requests: list[tuple[int, SamplingConfig]]) -> set[str]:
    """Every prompt and negative prompt."""
    return {text for _, request in requests for text in (*request.prompts, request.negative)}


def largest_sample(requests: list[tuple[int, SamplingConfig]], base: Base) -> tuple[tuple[int, int], int]:
    """(px of the largest picture, how many of that size the largest pass of the strip amounts to)."""
    native, areas, passes = base.native_size, {}, []
    for _, request in requests:
        size = (request.width or native, request.height or native)
        areas[size] = size[0] * size[1]
        passes.append(areas[size] * rows_per_pass(len(request.prompts), len(STRENGTHS), size))
    largest = max(areas, key=lambda size: areas[size])
    return largest, -(-max(passes) // areas[largest])


def _check_size(request: SamplingConfig, base: Base) -> None:
    step = 4 * base.latent_factor
    if request.width % step or request.height % step:
        raise ConfigError(
            [
                f"--w and --h of a sample prompt must be multiples of {step}, not {request.width} x {request.height}"
            ]
        )


def sample_is_due(config: TrainConfig, step: int, epochs_before: int, epochs: int) -> bool:
    """Whether pictures are drawn after `step` steps, with so many whole epochs done before it and by now."""
    by_steps = config.sample_every and step % config.sample_every == 0
    by_epochs = (
        config.sample_every_epochs
        and epochs // config.sample_every_epochs > epochs_before // config.sample_every_epochs
    )
    return bool(by_steps or by_epochs)


@dataclass(frozen=True)
class TrainingSamples:
    """Draws a training's pictures with the models that train."""

    run: Run
    config: TrainConfig
    base: Base
    requests: list[tuple[int, SamplingConfig]]
    unet: Any
    adapter: Adapter
    texts: TextConditioner
    room: SamplingLimits = NO_LIMITS

    def at_step(self, step: int) -> None:
        """Pictures at strength 1, told as they are made."""
        self.run.emit("stage", stage="drawing")
        for facts in self._safely(lambda: self._drawn((1.0,), f"step-{step:06d}_"), f"at step {step}"):
            self.run.emit("sample", step=step, **facts)

    def one(self) -> Image.Image:
        """The first prompt's picture at strength 1."""
        request = self.requests[0][1]
        first = dataclasses.replace(request, prompts=request.prompts[:1], strengths=(1.0,))
        with eval_mode(self.unet):
            return self._draw(first, self.base.vae(self.unet.device))[0].picture

    def at_end(self) -> list[dict[str, Any]]:
        """Pictures at all strengths and `strip.png`; their facts for the page."""
        self.run.emit("stage", stage="drawing")
        return self._safely(lambda: self._drawn(STRENGTHS, ""), "of the end")

    def _safely(self, drawn: Any, when: str) -> list[dict[str, Any]]:
        """Pictures never cost the training: when memory or disk does not suffice for them, that is told and it goes on."""
        try:
            with eval_mode(self.unet):
                return drawn()
        except (OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, OSError) and not lacks_memory(error):
                raise
            lacked = "disk" if isinstance(error, OSError) else "memory"
            self.run.emit("problem", message=f"the {lacked} did not suffice to draw pictures {when}")
            return []

    def _drawn(self, strengths: tuple[float, ...], prefix: str) -> list[dict[str, Any]]:
        vae, facts, cells = self.base.vae(self.unet.device), [], []
        prompts = tuple(prompt for _, request in self.requests for prompt in request.prompts)
        for first, asked in self.requests:
            request = dataclasses.replace(asked, strengths=strengths)
            for cell in self._draw(request, vae):
                numbered = dataclasses.replace(cell, prompt_index=first + cell.prompt_index)
                path = self.run.samples / f"{prefix}{picture_name(numbered.prompt_index, cell.strength)}"
                save_image(cell, request, path, base=self.base.name, loras=[(self.config.name, 1.0)])
                prompt = prompts[numbered.prompt_index]
                told = {
                    "file": path.name,
                    "prompt": prompt,
                    "strength": cell.strength,
                    "seed": asked.seed + cell.prompt_index,
                }
                facts.append({**told, "made": time.time_ns()})
                cells.append(numbered)
        if len(strengths) > 1:
            save_strip(cells, SamplingConfig(prompts=prompts, strengths=strengths), self.run.samples)
        return facts

    def _draw(self, request: SamplingConfig, vae: Any) -> list[GeneratedImage]:
        native = self.base.native_size
        return draw(
            request,
            unet=self.unet,
            vae=vae,
            scheduler=training_scheduler(self.config, self.base),
            adapter=self.adapter,
            conditioning=conditioner(
                self.texts.known,
                self.texts.one,
                self.adapter,
                changes_text=self.texts.are_trained,
                zeros_for_empty=self.base.zeros_for_empty_prompt,
            ),
            size=(request.width or native, request.height or native),
            latent_factor=self.base.latent_factor,
            room=self.room,
        )
