"""Text conditioning of a training: its prompts, and their embeddings from cache or text encoders."""

from __future__ import annotations

import functools

import torch

from trainer.config import TrainConfig
from trainer.dataset.caption_rules import CaptionRules
from trainer.sdxl.base import Base
from trainer.sdxl.protocols import TextEncoder, Tokenizer
from trainer.sdxl.text import DEFAULT_ENCODING, Conditioning, Encoders, PromptEncoding, count_windows, encode
from trainer.training.batches import Batches

MAX_CACHED_PROMPTS = 2000  # in memory at once: 1.3 GB at SDXL's width


def training_captions(rules: CaptionRules, batches: Batches, positions: int) -> set[str] | None:
    """Returns the captions of the first `positions` batches; None for more than MAX_CACHED_PROMPTS.

    Captions are a function of seed and position, so only the captions that this training uses are collected,
    not all that the caption rules could give.
    """
    if not rules.varies:
        return {rules.at([item], 0)[0][0] for item in batches.items}
    captions: set[str] = set()
    for position, rows in batches.first(positions):
        captions |= {caption for caption, _ in rules.at([batches.items[row] for row in rows], position)}
        if len(captions) > MAX_CACHED_PROMPTS:
            return None
    return captions


def caption_encoding(config: TrainConfig) -> PromptEncoding:
    """Returns the encoding of captions, as set."""
    return PromptEncoding(
        windows=config.caption_windows, clip_skip=config.clip_skip, weighted=config.weighted_captions
    )


def sample_encoding(config: TrainConfig, prompts: set[str], tokenizer: Tokenizer) -> PromptEncoding:
    """Returns the encoding of sample prompts: in as many windows as the longest needs.

    (word:1.2) is emphasis, as in the prompts of `preview` and the page; in captions that are used as prompts,
    plain brackets are escaped.
    """
    windows = max(count_windows(prompt, tokenizer, weighted=True) for prompt in prompts)
    return PromptEncoding(windows=windows, clip_skip=config.clip_skip, weighted=True)


class TextModels:
    """A base's tokenizers and fp32 text encoders, loaded at first use."""

    def __init__(self, base: Base, device: torch.device) -> None:
        self._base, self._device = base, device

    @functools.cached_property
    def encoders(self) -> Encoders:
        """Both text encoders, frozen."""
        return self._base.text_encoders(self._device, torch.float32)

    @functools.cached_property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Both tokenizers."""
        return self._base.tokenizers()


class TextConditioner:
    """Conditioning of prompts: from memory, from frozen encoders, or from encoders that are trained.

    Attributes:
        cached: conditioning by prompt, at most MAX_CACHED_PROMPTS computed here beside those given.
        models: None where every prompt of the training is in `cached` and the encoders have left memory.
        is_trained: the encoders are trained, so that the conditioning of a prompt changes with every step.
    """

    def __init__(
        self,
        cached: dict[str, Conditioning],
        models: TextModels | None = None,
        encoding: PromptEncoding = DEFAULT_ENCODING,
        *,
        is_trained: bool = False,
    ) -> None:
        self.cached, self.models, self.encoding, self.is_trained = cached, models, encoding, is_trained

    def encode(self, prompts: list[str]) -> Conditioning:
        """Returns the conditioning of each prompt, with gradients where the encoders are trained."""
        if self.is_trained:
            assert self.models is not None
            return encode(prompts, self.models.tokenizers, self.models.encoders, self.encoding)
        return self.frozen(prompts)

    def frozen(self, prompts: list[str]) -> Conditioning:
        """Returns the conditioning of each prompt by encoders that change no more; each is encoded once."""
        return Conditioning.stack([self._cached(prompt) for prompt in prompts])

    def trained_encoders(self) -> dict[str, TextEncoder]:
        """Returns both text encoders by part where at least one is trained, and otherwise nothing."""
        if not self.is_trained:
            return {}
        assert self.models is not None
        first, second = self.models.encoders
        return {"text_encoder": first, "text_encoder_2": second}

    def encode_one(self, prompt: str) -> Conditioning:
        """Returns the conditioning of one prompt, always computed by the encoders."""
        assert self.models is not None, f"not cached: {prompt}"
        return encode([prompt], self.models.tokenizers, self.models.encoders, self.encoding)

    def _cached(self, prompt: str) -> Conditioning:
        # One prompt at a time: in a batch of another size the last bits differ, and a resumed run has other
        # prompts in memory than the run that it continues, so its batches would differ too.
        if prompt not in self.cached:
            with torch.no_grad():
                conditioning = self.encode_one(prompt)
            while len(self.cached) >= MAX_CACHED_PROMPTS:
                self.cached.pop(next(iter(self.cached)))
            self.cached[prompt] = conditioning
        return self.cached[prompt]
