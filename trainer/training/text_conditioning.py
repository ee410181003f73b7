"""The prompts that a training reads, and where what the text encoders say of them comes from."""

from __future__ import annotations

from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.dataset.caption_rules import CaptionRules
from trainer.sdxl.text import DEFAULT_ENCODING, Conditioning, PromptEncoding, count_windows, encode
from trainer.training.batches import Batches

MAX_CACHED_PROMPTS = 2000  # remembered together: 1.3 GB at SDXL's width


def training_captions(rules: CaptionRules, batches: Batches, positions: int) -> set[str] | None:
    """Every caption that the first `positions` batches draw; None when there are more than MAX_TEXTS.

    Captions are a function of seed and position, so the training's own draws are counted, not all that could be drawn.
    """
    if not rules.varies:
        return {rules.at([item], 0)[0][0] for item in batches.items}
    found: set[str] = set()
    for position, rows in batches.first(positions):
        found |= {caption for caption, _ in rules.at([batches.items[row] for row in rows], position)}
        if len(found) > MAX_CACHED_PROMPTS:
            return None
    return found


def caption_encoding(config: TrainConfig) -> PromptEncoding:
    """How captions are read."""
    return PromptEncoding(
        windows=config.caption_windows, clip_skip=config.clip_skip, weighted=config.weighted_captions
    )


def sample_encoding(config: TrainConfig, prompts: set[str], tokenizer: Any) -> PromptEncoding:
    """How the prompts of pictures are read: whole, and with (word:1.2) as emphasis where the user wrote them as prompts."""
    weighted = bool(config.sample_prompts) or config.weighted_captions
    windows = max(count_windows(prompt, tokenizer, weighted=weighted) for prompt in prompts)
    return PromptEncoding(windows=windows, clip_skip=config.clip_skip, weighted=weighted)


class TextConditioner:
    """Conditioning of prompts: from memory, from frozen encoders that stay loaded, or from encoders that are being trained."""

    def __init__(
        self,
        known: dict[str, Conditioning],
        encoders: Any = None,
        tokenizers: Any = None,
        reading: PromptEncoding = DEFAULT_ENCODING,
        *,
        are_trained: bool = False,
    ) -> None:
        self.known, self.encoders, self.tokenizers, self.are_trained, self.reading = (
            known,
            encoders,
            tokenizers,
            are_trained,
            reading,
        )

    def of(self, prompts: list[str]) -> Conditioning:
        if self.are_trained:
            return encode(prompts, self.tokenizers, self.encoders, self.reading)
        return Conditioning.stack([self._remembered(prompt) for prompt in prompts])

    def settled(self, prompts: list[str]) -> Conditioning:
        """As `of` at strength 1 by encoders that learn no more: each prompt is read once."""
        return Conditioning.stack([self._remembered(prompt) for prompt in prompts])

    def one(self, prompt: str) -> Conditioning:
        """Of one prompt, always by the encoders."""
        return encode([prompt], self.tokenizers, self.encoders, self.reading)

    def _remembered(self, prompt: str) -> Conditioning:
        # One prompt at a time: a batch of another size differs in the last bits, and a resumed run remembers other prompts.
        if prompt not in self.known:
            with torch.no_grad():
                found = self.one(prompt)
            while len(self.known) >= MAX_CACHED_PROMPTS:
                self.known.pop(next(iter(self.known)))
            self.known[prompt] = found
        return self.known[prompt]
