"""Pictures that the page asks for while a training runs, drawn between two steps with the adapter as it is then.

The training's file is the same to the byte with and without them: all that is random in them has generators of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainer.errors import ConfigError
from trainer.runs.commands import CommandInbox
from trainer.runs.draw_protocol import OnStep, serve_request
from trainer.sampling.images import save_image
from trainer.sampling.sampler import conditioner, draw
from trainer.sampling_config import SamplingConfig, picture_name
from trainer.sdxl.schedulers import training_scheduler
from trainer.sdxl.text import Conditioning, PromptEncoding, count_windows, encode
from trainer.sdxl.unet import eval_mode
from trainer.training.ema import EmaWeights
from trainer.training.samples import TrainingSamples


class LivePreview:
    """Answers the wishes that a training has heard, with the models that train."""

    def __init__(self, sampler: TrainingSamples, stop: CommandInbox, average: EmaWeights) -> None:
        self.sampler, self.stop, self.average = sampler, stop, average

    def answer(self) -> None:
        """To be called between two steps."""
        requests, self.stop.draw_requests = self.stop.draw_requests, []
        for wish in requests if self.sampler.run.is_main_process else ():
            with eval_mode(self.sampler.unet), self.average.shown():
                serve_request(self.sampler.run, wish, self._is_cancelled, self._drawn)

    def _is_cancelled(self, name: str) -> bool:
        return self.stop.stop_requested() or name in self.stop.cancelled

    def _drawn(self, request: SamplingConfig, out: Path, on_step: OnStep) -> list[Path]:
        sampler, base = self.sampler, self.sampler.base
        native, device = base.native_size, sampler.unet.device
        size = (request.width or native, request.height or native)
        if any(side % (4 * base.latent_factor) for side in size):
            raise ConfigError(
                [f"width and height must be multiples of {4 * base.latent_factor}, not {size[0]} x {size[1]}"]
            )
        cells = draw(
            request,
            unet=sampler.unet,
            vae=base.vae(device),
            scheduler=training_scheduler(sampler.config, base),
            adapter=sampler.adapter,
            conditioning=conditioner(
                {},
                self._encoder(request),
                sampler.adapter,
                changes_text=sampler.texts.are_trained,
                zeros_for_empty=base.zeros_for_empty_prompt,
            ),
            size=size,
            latent_factor=base.latent_factor,
            room=sampler.room,
            on_step=on_step,
        )
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / picture_name(cell.prompt_index, cell.strength) for cell in cells]
        for cell, path in zip(cells, paths, strict=True):
            save_image(cell, request, path, base=base.name, loras=[(sampler.config.name, 1.0)])
        return paths

    def _encoder(self, request: SamplingConfig) -> Callable[[str], Conditioning]:
        """Prompt -> conditioning; frozen encoders that have left memory are read again, on the CPU: no room of the training's is asked."""
        texts, base = self.sampler.texts, self.sampler.base
        tokenizers = texts.tokenizers or base.tokenizers()
        encoders = texts.encoders or base.text_encoders(torch.device("cpu"), torch.float32)
        windows = max(
            count_windows(prompt, tokenizers[0], weighted=True)
            for prompt in (*request.prompts, request.negative)
        )
        reading = PromptEncoding(windows=windows, clip_skip=request.clip_skip, weighted=True)

        def encode_one(prompt: str) -> Conditioning:
            return encode([prompt], tokenizers, encoders, reading)

        return encode_one
