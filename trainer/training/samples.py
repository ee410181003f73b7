"""Sample images during and after a training, from prompts that may carry kohya's flags.

    a cat in the rain --n blurry --w 832 --h 1216 --d 7 --l 6.5 --s 24

--n negative prompt, --w and --h px, --d seed, --l guidance scale, --s steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from trainer.config import TrainConfig
from trainer.dataset.manifest import Item, Manifest
from trainer.errors import ConfigError, lacks_memory
from trainer.prompt_syntax import as_prompt, read_caption
from trainer.runs.run import Run
from trainer.sampling.images import GeneratedImage, save_image, save_strip
from trainer.sampling.sampler import Sampler, rows_per_pass
from trainer.sampling_config import (
    NO_LIMITS,
    PROMPTS,
    STRENGTHS,
    SamplingConfig,
    SamplingLimits,
    parse_prompt_line,
    picture_name,
)
from trainer.sdxl.base import Base
from trainer.sdxl.schedulers import training_scheduler
from trainer.sdxl.unet import eval_mode
from trainer.training.setup import Setup
from trainer.training.text_conditioning import TextConditioner

NumberedConfigs = list[tuple[int, SamplingConfig]]  # each with the number of its first prompt in the training


def sample_configs(config: TrainConfig, manifest: Manifest, base: Base) -> NumberedConfigs:
    """Returns the sampling of the user's prompts, or of four captions spread over the dataset.

    Neighbouring prompts with the same settings are joined, so that they are sampled in one pass.

    Raises:
        ConfigError: a prompt has an unknown flag, or a size that the UNet can't generate.
    """
    captions = list(
        dict.fromkeys(_prompt_of(config, item) for item in manifest.items if item.role == "train")
    )
    lines = config.sample_prompts or captions[:: max(1, len(captions) // PROMPTS)][:PROMPTS]
    configs: NumberedConfigs = []
    for number, line in enumerate(lines):
        text, flags = parse_prompt_line(line) if config.sample_prompts else (line, {})
        # The seed of a prompt is `seed + its number`, so that prompts without --d differ in their noise.
        sampling = SamplingConfig(
            prompts=(text,), steps=config.sample_steps, seed=config.seed + number, strengths=(1.0,)
        )
        sampling = dataclasses.replace(sampling, **flags)
        _check_size(sampling, base)
        if configs and "seed" not in flags:
            first, previous = configs[-1]
            joined = dataclasses.replace(previous, prompts=(*previous.prompts, text))
            is_same = dataclasses.replace(sampling, prompts=joined.prompts, seed=previous.seed) == joined
            if is_same and previous.seed == config.seed + first:
                configs[-1] = (first, joined)
                continue
        configs.append((number, sampling))
    return configs


def _prompt_of(config: TrainConfig, item: Item) -> str:
    """Returns a picture's caption as a prompt that is read as in the training."""
    caption = read_caption(item.caption, weighted=config.weighted_captions)
    return caption if config.weighted_captions else as_prompt(caption)


def sample_prompts_of(configs: NumberedConfigs) -> set[str]:
    """Returns every prompt and negative prompt."""
    return {text for _, config in configs for text in (*config.prompts, config.negative)}


def largest_sample(configs: NumberedConfigs, base: Base) -> tuple[tuple[int, int], int]:
    """Returns (width and height of the largest image, size of the largest pass in such images)."""
    native, areas, passes = base.native_size, {}, []
    for _, config in configs:
        size = (config.width or native, config.height or native)
        areas[size] = size[0] * size[1]
        passes.append(areas[size] * rows_per_pass(len(config.prompts), len(STRENGTHS), size))
    largest = max(areas, key=lambda size: areas[size])
    return largest, -(-max(passes) // areas[largest])


def _check_size(config: SamplingConfig, base: Base) -> None:
    stride = 4 * base.latent_factor
    if config.width % stride or config.height % stride:
        size = f"{config.width} x {config.height}"
        raise ConfigError([f"--w and --h of a sample prompt must be multiples of {stride}, not {size}"])


def sample_is_due(config: TrainConfig, step: int, epochs_before: int, epochs: int) -> bool:
    """Returns True when images are generated after `step` steps.

    Args:
        epochs_before: whole epochs completed before the last step.
        epochs: whole epochs completed now.
    """
    by_steps = config.sample_every and step % config.sample_every == 0
    every = config.sample_every_epochs
    by_epochs = every and epochs // every > epochs_before // every
    return bool(by_steps or by_epochs)


@dataclass(frozen=True)
class TrainingSamples:
    """Generates the sample images of a training with the models that are trained."""

    run: Run
    setup: Setup
    configs: NumberedConfigs
    conditioner: TextConditioner
    limits: SamplingLimits = NO_LIMITS

    def is_due(self, step: int, batches_per_step: int) -> bool:
        """Returns True when images are generated after `step` steps, the last step excepted."""
        config, per_epoch = self.setup.config, self.setup.batches.per_epoch
        before, now = ((done * batches_per_step) // per_epoch for done in (step - 1, step))
        return step < config.steps and sample_is_due(config, step, before, now)

    def at_step(self, step: int) -> None:
        """Saves images at strength 1 and emits a `sample` event for each."""
        self.run.emit("stage", stage="drawing")
        saved = self._unless_short(lambda: self._save_all((1.0,), f"step-{step:06d}_"), f"at step {step}")
        for fields in saved:
            self.run.emit("sample", step=step, **fields)

    def at_end(self) -> list[dict[str, Any]]:
        """Saves images at all strengths and `strip.png`; returns the event fields of each image."""
        self.run.emit("stage", stage="drawing")
        return self._unless_short(lambda: self._save_all(STRENGTHS, ""), "at the end")

    def first_image(self) -> Image.Image:
        """Returns the first prompt's image at strength 1."""
        config = self.configs[0][1]
        first = dataclasses.replace(config, prompts=config.prompts[:1], strengths=(1.0,))
        with eval_mode(self.setup.unet):
            return self._generate(self.sampler(), first)[0].image

    def sampler(self) -> Sampler:
        """Returns a sampler with the models that are trained and a newly loaded VAE."""
        return Sampler(
            base=self.setup.base,
            unet=self.setup.unet,
            vae=self.setup.base.vae(self.setup.unet.device),
            scheduler=training_scheduler(self.setup.config, self.setup.base),
            adapter=self.setup.adapter,
            changes_text=self.conditioner.is_trained,
            limits=self.limits,
        )

    def _unless_short(self, save_all: Callable[[], list[dict[str, Any]]], when: str) -> list[dict[str, Any]]:
        """Calls `save_all`; too little memory or disk space is a problem, but does not end the training."""
        try:
            with eval_mode(self.setup.unet):
                return save_all()
        except (OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, OSError) and not lacks_memory(error):
                raise
            lacking = "disk space" if isinstance(error, OSError) else "memory"
            self.run.emit("problem", message=f"not enough {lacking} for the sample images {when}")
            return []

    def _save_all(self, strengths: tuple[float, ...], prefix: str) -> list[dict[str, Any]]:
        sampler, fields, images = self.sampler(), [], []
        prompts = tuple(prompt for _, config in self.configs for prompt in config.prompts)
        for first, config in self.configs:
            sampling = dataclasses.replace(config, strengths=strengths)
            for image in self._generate(sampler, sampling):
                numbered = dataclasses.replace(image, prompt_index=first + image.prompt_index)
                path = self.run.samples / f"{prefix}{picture_name(numbered.prompt_index, image.strength)}"
                save_image(
                    image, sampling, path, base=self.setup.base.name, loras=[(self.setup.config.name, 1.0)]
                )
                images.append(numbered)
                fields.append(
                    {
                        "file": path.name,
                        "prompt": prompts[numbered.prompt_index],
                        "strength": image.strength,
                        "seed": config.seed + image.prompt_index,
                        "made": time.time_ns(),
                    }
                )
        if len(strengths) > 1:
            save_strip(images, SamplingConfig(prompts=prompts, strengths=strengths), self.run.samples)
        return fields

    def _generate(self, sampler: Sampler, config: SamplingConfig) -> list[GeneratedImage]:
        encode = sampler.prompt_encoder(self.conditioner.cached, self.conditioner.encode_one)
        return sampler.generate(config, encode)
