"""LoRA files, prompts and strengths to image files, with a base model that stays loaded between requests."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from trainer.adapter.lora import Adapter
from trainer.hardware.device import find_device
from trainer.hardware.precision import precision_for
from trainer.headers.lora import recognise
from trainer.lora_file.attach import attach_mix, changed_parts, try_swap_weights
from trainer.planning.plan import sampling_limits_beside_models
from trainer.runs.draw_protocol import FRAME, OnStep
from trainer.sampling.images import GeneratedImage, save_image, save_strip
from trainer.sampling.latent_preview import LatentToRgb, fit_latent_to_rgb, frame_writer
from trainer.sampling.sampler import (
    OnFrame,
    Sampler,
    image_size,
    prompt_encoding,
    rows_per_pass,
)
from trainer.sampling_config import SamplingConfig, SamplingLimits, picture_name
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.protocols import NoiseScheduler
from trainer.sdxl.schedulers import scheduler_of_lora_files
from trainer.sdxl.text import Conditioning, PromptEncoding, encode

PROMPTS_PER_STRIP = 16  # rows of one sheet
Mix = Sequence[tuple[Path, float]]  # LoRA files, each with its weight at strength 1


class WarmBase:
    """A base model whose parts stay loaded, with the conditioning of every prompt so far."""

    def __init__(self, base: Base, precision: str = "auto") -> None:
        self.base, self.device = base, find_device()
        self.unet = base.unet(self.device, precision_for(precision, self.device, base.configs)).to(
            memory_format=torch.channels_last
        )
        self.vae = base.vae(self.device)
        self.scheduler = base.scheduler()
        self.encoders = base.text_encoders(self.device, torch.float32)
        self.tokenizers = base.tokenizers()
        self.cached: dict[PromptEncoding, dict[str, Conditioning]] = {}
        self._limits: dict[tuple[tuple[int, int], int], SamplingLimits] = {}
        self._adapter = Adapter()

    @functools.cached_property
    def latent_to_rgb(self) -> LatentToRgb:
        """The map of this base's latents to RGB, fitted at first use."""
        return fit_latent_to_rgb(self.vae)

    def generate(
        self,
        lora: Path | Mix | None,
        config: SamplingConfig,
        on_step: OnStep | None = None,
        on_frame: OnFrame | None = None,
    ) -> list[GeneratedImage]:
        """Returns all images of `iterate`."""
        return list(self.iterate(lora, config, on_step, on_frame))

    def iterate(
        self,
        lora: Path | Mix | None,
        config: SamplingConfig,
        on_step: OnStep | None = None,
        on_frame: OnFrame | None = None,
    ) -> Iterator[GeneratedImage]:
        """Yields images with a LoRA file, or with several at their weights, or with the base model alone.

        Raises:
            ConfigError: the width or height does not fit the base.
            LoraFileError: a file can't be read or does not fit the base; then none is attached.
        """
        files = _files(lora)
        changed = {part for file, _ in files for part in changed_parts(file)}
        adapter = self.adapter_of(files)
        encoding = prompt_encoding(config, self.tokenizers[0])

        def encode_one(prompt: str) -> Conditioning:
            with torch.inference_mode():
                return encode([prompt], self.tokenizers, self.encoders, encoding)

        sampler = Sampler(
            base=self.base,
            unet=self.unet,
            vae=self.vae,
            scheduler=self._scheduler(files),
            adapter=adapter,
            changes_text=bool(changed - {"unet"}),
            limits=self._limits_of(config),
        )
        encoder = sampler.prompt_encoder(self.cached.setdefault(encoding, {}), encode_one)
        yield from sampler.iterate(config, encoder, on_step, on_frame)

    def adapter_of(self, files: Mix) -> Adapter:
        """Returns an adapter of the files, attached to the models until other files are requested.

        Where the matrices have the same shapes as the last ones, only their values are replaced.

        Raises:
            LoraFileError: a file can't be read or does not fit the base; then none is attached.
        """
        models = {"unet": self.unet, "text_encoder": self.encoders[0], "text_encoder_2": self.encoders[1]}
        if files and self._adapter.layers and try_swap_weights(files, self._adapter):
            return self._adapter
        previous, self._adapter = self._adapter, Adapter()
        for part in list(previous.layers):
            previous.detach(part, models[part])
        if files:
            changed = {part for file, _ in files for part in changed_parts(file)} | {"unet"}
            self._adapter = attach_mix(files, {part: models[part] for part in models if part in changed})
        return self._adapter

    def _limits_of(self, config: SamplingConfig) -> SamplingLimits:
        """Returns what memory allows, computed once for each image size and number of rows."""
        size = image_size(config, self.base)
        rows = rows_per_pass(len(config.prompts), len(config.strengths), size)
        if (size, rows) not in self._limits:
            self._limits[size, rows] = sampling_limits_beside_models(
                self.base.configs, self.unet.dtype, size, rows, self.device
            )
        return self._limits[size, rows]

    def _scheduler(self, files: Mix) -> NoiseScheduler:
        """Returns the scheduler of the files' training, since a training may override the base's."""
        headers = [recognise(file).metadata for file, _ in files]
        return scheduler_of_lora_files(headers, self.base)


def _files(lora: Path | Mix | None) -> Mix:
    return [(lora, 1.0)] if isinstance(lora, Path) else lora or []


def generate_from_file(
    lora: Path | Mix,
    config: SamplingConfig,
    out_dir: Path,
    *,
    base: str,
    models: Path,
    on_step: OnStep | None = None,
) -> list[Path]:
    """Writes `p00_s0.00.png` and so on, and a sheet `strip.png` of each 16 prompts; returns their paths.

    Each image is written as soon as its pass is complete, and at most the images of one sheet are in memory, so
    that the number of prompts is not limited. Further sheets are named `strip-2.png` and so on.

    Raises:
        TrainerError: before the base is loaded where a LoRA file is the reason.
    """
    files = _files(lora)
    for file, _ in files:
        changed_parts(file)
    warm = WarmBase(open_base(base, models))
    loras = [(file.stem, weight) for file, weight in files]
    out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    sheets: list[Path] = []

    def saved() -> Iterator[GeneratedImage]:
        for image in warm.iterate(files, config, on_step):
            paths.append(out_dir / picture_name(image.prompt_index, image.strength))
            save_image(image, config, paths[-1], base=warm.base.name, loras=loras)
            yield image

    images = saved()
    while images_of_sheet := list(itertools.islice(images, PROMPTS_PER_STRIP * len(config.strengths))):
        name = f"strip-{len(sheets) + 1}.png" if sheets else "strip.png"
        sheets.append(save_strip(images_of_sheet, config, out_dir, name))
    return [*paths, *sheets]


def generate_and_save(
    warm: WarmBase,
    lora: Path | Mix,
    config: SamplingConfig,
    out_dir: Path,
    on_step: OnStep | None = None,
    prefix: str = "",
) -> list[Path]:
    """Writes the images and `strip.png`, and returns their paths, the strip's last.

    With `on_step`, rough previews of the images are written to `out_dir` while they are denoised.
    """
    try:
        on_frame = frame_writer(warm.latent_to_rgb, out_dir) if on_step else None
        images = warm.generate(lora, config, on_step, on_frame)
    finally:
        (out_dir / FRAME).unlink(missing_ok=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    loras = [(file.stem, weight) for file, weight in _files(lora)]
    paths = [out_dir / f"{prefix}{picture_name(image.prompt_index, image.strength)}" for image in images]
    for image, path in zip(images, paths, strict=True):
        save_image(image, config, path, base=warm.base.name, loras=loras)
    return [*paths, save_strip(images, config, out_dir)]
