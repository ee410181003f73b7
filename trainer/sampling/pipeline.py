"""A LoRA file, prompts and strengths to pictures on disk, with the base kept warm between requests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.adapter.lora import Adapter
from trainer.errors import ConfigError
from trainer.hardware.device import find_device
from trainer.hardware.precision import precision_for
from trainer.headers.lora import recognise
from trainer.lora_file.attach import attach_mix, changed_parts, try_swap_weights
from trainer.planning.plan import sampling_limits_beside_models
from trainer.runs.draw_protocol import FRAME
from trainer.sampling.images import save_image, save_strip
from trainer.sampling.latent_preview import LatentToRgb, fit_latent_to_rgb, frame_writer
from trainer.sampling.sampler import SamplingConfig, conditioner, draw, rows_per_pass
from trainer.sampling_config import SamplingLimits, picture_name
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.schedulers import scheduler_of_lora_files
from trainer.sdxl.text import Conditioning, PromptEncoding, count_windows, encode

Mix = Sequence[tuple[Path, float]]  # files, and how much of each the whole strength means


class WarmBase:
    """A base whose parts stay loaded, with the conditioning of every prompt seen."""

    def __init__(self, base: Base, precision: str = "auto") -> None:
        self.base, self.device = base, find_device()
        self.unet = base.unet(self.device, precision_for(precision, self.device, base.configs)).to(
            memory_format=torch.channels_last
        )
        self.vae = base.vae(self.device)
        self.scheduler: Any = base.scheduler()
        self.encoders = base.text_encoders(self.device, torch.float32)
        self.tokenizers = base.tokenizers()
        self.known: dict[PromptEncoding, dict[str, Conditioning]] = {}
        self.rooms: dict[tuple[tuple[int, int], int], SamplingLimits] = {}
        self._adapter = Adapter()

    @functools.cached_property
    def colours(self) -> LatentToRgb:
        return fit_latent_to_rgb(self.vae)

    def draw(
        self, lora: Path | Mix | None, request: SamplingConfig, on_step: Any = None, on_frame: Any = None
    ) -> list[Any]:
        """Pictures of a LoRA file or of several, each at its weight; without one the base's own, which stays as it is."""
        files = _files(lora)
        changed: set[str] = {part for file, _ in files for part in changed_parts(file)}
        adapter = self.adapter_of(files)
        windows = max(
            count_windows(prompt, self.tokenizers[0], weighted=True)
            for prompt in (*request.prompts, request.negative)
        )
        reading = PromptEncoding(windows=windows, clip_skip=request.clip_skip, weighted=True)

        def encode_one(prompt: str) -> Conditioning:
            with torch.inference_mode():
                return encode([prompt], self.tokenizers, self.encoders, reading)

        wanted = conditioner(
            self.known.setdefault(reading, {}),
            encode_one,
            adapter,
            changes_text=bool(changed - {"unet"}),
            zeros_for_empty=self.base.zeros_for_empty_prompt,
        )
        native, factor = self.base.native_size, self.base.latent_factor
        size = (request.width or native, request.height or native)
        if any(side % (4 * factor) for side in size):
            raise ConfigError(
                [f"width and height must be multiples of {4 * factor}, not {size[0]} x {size[1]}"]
            )
        return draw(
            request,
            unet=self.unet,
            vae=self.vae,
            scheduler=self._scheduler(files),
            adapter=adapter,
            conditioning=wanted,
            size=size,
            latent_factor=factor,
            room=self._room(request, size),
            on_step=on_step,
            on_frame=on_frame,
        )

    def adapter_of(self, files: Mix) -> Adapter:
        """An adapter of the files in the models, which keep it until others are asked for.

        Matrices of the same shapes are only put in the place of the last ones. Raises LoraFileError; then none is attached.
        """
        models = {"unet": self.unet, "text_encoder": self.encoders[0], "text_encoder_2": self.encoders[1]}
        if files and self._adapter.layers and try_swap_weights(files, self._adapter):
            return self._adapter
        kept, self._adapter = self._adapter, Adapter()
        detach_all(kept, models)
        changed = {part for file, _ in files for part in changed_parts(file)}
        if files:
            self._adapter = attach_mix(
                files, {part: model for part, model in models.items() if part in changed or part == "unet"}
            )
        return self._adapter

    def _room(self, request: SamplingConfig, size: tuple[int, int]) -> SamplingLimits:
        """What memory allows, worked out once for each size of a drawing."""
        rows = rows_per_pass(len(request.prompts), len(request.strengths), size)
        if (size, rows) not in self.rooms:
            self.rooms[size, rows] = sampling_limits_beside_models(
                self.base.configs, self.unet.dtype, size, rows, self.device
            )
        return self.rooms[size, rows]

    def _scheduler(self, files: Mix) -> Any:
        """As the files were trained, when they say so: a training may override what the base says of itself."""
        facts = [recognise(file).metadata for file, _ in files]
        return scheduler_of_lora_files(facts, self.base)


def _files(lora: Path | Mix | None) -> Mix:
    return [(lora, 1.0)] if isinstance(lora, Path) else lora or []


def detach_all(adapter: Adapter, models: dict[str, Any]) -> None:
    for part in list(adapter.layers):
        adapter.detach(part, models[part])


def generate_from_file(
    lora: Path | Mix, request: SamplingConfig, out_dir: Path, *, base: str, models: Path
) -> list[Path]:
    """Draws and saves `p00_s0.00.png` ... and `strip.png`; their paths. Raises TrainerError before the base is loaded."""
    for file, _ in _files(lora):
        changed_parts(file)
    return generate_and_save(WarmBase(open_base(base, models)), lora, request, out_dir)


def generate_and_save(
    warm: WarmBase,
    lora: Path | Mix,
    request: SamplingConfig,
    out_dir: Path,
    on_step: Any = None,
    prefix: str = "",
) -> list[Path]:
    """Draws and saves; while somebody follows, rough pictures of what is coming lie in `out_dir`."""
    try:
        drawn = warm.draw(lora, request, on_step, frame_writer(warm.colours, out_dir) if on_step else None)
    finally:
        (out_dir / FRAME).unlink(missing_ok=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    loras = [(file.stem, weight) for file, weight in _files(lora)]
    paths = [out_dir / f"{prefix}{picture_name(cell.prompt_index, cell.strength)}" for cell in drawn]
    for cell, path in zip(drawn, paths, strict=True):
        save_image(cell, request, path, base=warm.base.name, loras=loras)
    return [*paths, save_strip(drawn, request, out_dir)]
