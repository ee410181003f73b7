"""Draw requests of the page, served between two steps of a training with the adapter's weights.

The training's file is the same to the byte with and without them: everything random in them has its own
generators.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainer.runs.commands import CommandInbox
from trainer.runs.draw_protocol import OnStep, serve_request
from trainer.sampling.images import save_image
from trainer.sampling.sampler import image_size, prompt_encoding
from trainer.sampling_config import SamplingConfig, picture_name
from trainer.sdxl.text import Conditioning, encode
from trainer.sdxl.unet import eval_mode
from trainer.training.ema import EmaWeights
from trainer.training.samples import TrainingSamples


class LivePreview:
    """Serves the draw requests that a training's inbox has received, with the models that are trained."""

    def __init__(self, samples: TrainingSamples, inbox: CommandInbox, ema: EmaWeights) -> None:
        self.samples, self.inbox, self.ema = samples, inbox, ema

    def serve_requests(self) -> None:
        """Serves all pending requests; must be called between two steps."""
        requests, self.inbox.draw_requests = self.inbox.draw_requests, []
        if not self.samples.run.is_main_process:
            return
        for request in requests:
            with eval_mode(self.samples.setup.unet), self.ema.swapped_in():
                serve_request(self.samples.run, request, self._is_cancelled, self._save_all)

    def _is_cancelled(self, request_id: str) -> bool:
        return self.inbox.stop_requested() or request_id in self.inbox.cancelled

    def _save_all(self, config: SamplingConfig, out: Path, on_step: OnStep) -> list[Path]:
        image_size(config, self.samples.setup.base)  # raises before the VAE is loaded
        sampler = self.samples.sampler()
        # A new cache for each request: the adapter's weights and the encoding of prompts differ between
        # requests.
        images = sampler.generate(config, sampler.prompt_encoder({}, self._prompt_reader(config)), on_step)
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / picture_name(image.prompt_index, image.strength) for image in images]
        for image, path in zip(images, paths, strict=True):
            loras = [(self.samples.setup.config.name, 1.0)]
            save_image(image, config, path, base=self.samples.setup.base.name, loras=loras)
        return paths

    def _prompt_reader(self, config: SamplingConfig) -> Callable[[str], Conditioning]:
        """Returns a function from prompt to conditioning.

        Frozen text encoders that have left memory are loaded again, on the CPU, since the memory plan of the
        training has no place for them on the device.
        """
        models = self.samples.conditioner.models
        if models is None:
            base = self.samples.setup.base
            tokenizers, encoders = base.tokenizers(), base.text_encoders(torch.device("cpu"), torch.float32)
        else:
            tokenizers, encoders = models.tokenizers, models.encoders
        encoding = prompt_encoding(config, tokenizers[0])
        return lambda prompt: encode([prompt], tokenizers, encoders, encoding)
