"""Prompts to SDXL's conditioning: penultimate states of both text encoders, pooled vector of the second.

N prompts, T = 77 tokens in each window, D = width of both encoders together, P = pooled width (Podell et al.
2023, section 2.1). A long prompt is encoded in several windows of 75 tokens, whose states are concatenated
along T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.errors import ConfigError
from trainer.sdxl.emphasis import parse_emphasis
from trainer.sdxl.protocols import TextEncoder, Tokenizer

Encoders = tuple[TextEncoder, TextEncoder]
WINDOW = 75  # tokens of a prompt in one pass of an encoder, between the start and end tokens


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of N prompts."""

    text_NTD: torch.Tensor
    pooled_NP: torch.Tensor

    def rows(self, index: list[int] | slice) -> Conditioning:
        """Returns the conditioning of some of the prompts."""
        return Conditioning(self.text_NTD[index], self.pooled_NP[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """Returns the conditioning on another device and in another precision."""
        return Conditioning(self.text_NTD.to(device, dtype), self.pooled_NP.to(device, dtype))

    @staticmethod
    def stack(parts: list[Conditioning]) -> Conditioning:
        """Returns the prompts of all parts as one batch."""
        return Conditioning(torch.cat([p.text_NTD for p in parts]), torch.cat([p.pooled_NP for p in parts]))


@dataclass(frozen=True, kw_only=True)
class PromptEncoding:
    """Options for the encoding of prompts."""

    windows: int = 1  # of every prompt, so that all have the same length
    clip_skip: int = 2  # layer whose states are used, from the end: 2 is the penultimate, as SDXL was trained
    weighted: bool = False  # (word:1.2) is emphasis rather than plain text

    @property
    def cache_key(self) -> str:
        """The name of this encoding in the cache of text embeddings.

        Caches on disk contain this text, so it must not change.
        """
        return f"Reading(windows={self.windows!r}, clip_skip={self.clip_skip!r}, weighted={self.weighted!r})"


DEFAULT_ENCODING = PromptEncoding()


def encode(
    prompts: list[str],
    tokenizers: tuple[Tokenizer, Tokenizer],
    encoders: Encoders,
    encoding: PromptEncoding = DEFAULT_ENCODING,
) -> Conditioning:
    """Returns the conditioning of prompts; tokens beyond the last window are cut off.

    A token of weight w is moved away from, or towards, the state of an empty prompt at its position:
    z = z_empty + w (z - z_empty), as in ComfyUI.

    Raises:
        ConfigError: if `clip_skip` exceeds the number of layers of an encoder.
    """
    states, pooled = [], None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        _check_clip_skip(encoding, encoder)
        windows, weights = zip(
            *(token_windows(prompt, tokenizer, encoding) for prompt in prompts), strict=True
        )
        # M = N x windows: each window is a row of its own for the encoder.
        ids_MT = torch.tensor([window for rows in windows for window in rows], device=encoder.device)
        output = encoder(ids_MT, output_hidden_states=True)
        state_MTD = output.hidden_states[-encoding.clip_skip]
        weight_MT = torch.tensor([row for rows in weights for row in rows], device=encoder.device)
        if bool((weight_MT != 1).any()):
            empty = torch.tensor(token_windows("", tokenizer, DEFAULT_ENCODING)[0], device=encoder.device)
            empty_1TD = encoder(empty, output_hidden_states=True).hidden_states[-encoding.clip_skip]
            state_MTD = empty_1TD + weight_MT[..., None].to(state_MTD.dtype) * (state_MTD - empty_1TD)
        states.append(state_MTD.reshape(len(prompts), -1, state_MTD.shape[-1]))
        # The pooled vector is the second encoder's, of the first window; the first encoder's is overwritten.
        pooled = output[0].reshape(len(prompts), encoding.windows, *output[0].shape[1:])[:, 0]
    assert pooled is not None
    return Conditioning(torch.cat(states, dim=-1), pooled)


def _check_clip_skip(encoding: PromptEncoding, encoder: TextEncoder) -> None:
    largest = encoder.config.num_hidden_layers + 1
    if encoding.clip_skip > largest:
        message = (
            f"clip_skip {encoding.clip_skip} is deeper than this base's text encoder; take at most {largest}"
        )
        raise ConfigError([message])


def token_windows(
    prompt: str, tokenizer: Tokenizer, encoding: PromptEncoding
) -> tuple[list[list[int]], list[list[float]]]:
    """Returns token ids and their weights, each a row of 77 for each window.

    A row has the start token, up to 75 tokens, the end token and padding.
    """
    ids, weights = _tokens(prompt, tokenizer, encoding.weighted)
    rows, row_weights = [], []
    for number in range(encoding.windows):
        part = slice(WINDOW * number, WINDOW * (number + 1))
        padding = WINDOW - len(ids[part])
        rows.append(
            [tokenizer.bos_token_id, *ids[part], tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
        )
        row_weights.append([1.0, *weights[part], 1.0, *[1.0] * padding])
    return rows, row_weights


def _tokens(prompt: str, tokenizer: Tokenizer, weighted: bool) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parse_emphasis(prompt) if weighted else [(prompt, 1.0)]:
        tokens = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
        ids += tokens
        weights += [weight] * len(tokens)
    return ids, weights


def count_windows(prompt: str, tokenizer: Tokenizer, *, weighted: bool = False) -> int:
    """Returns the number of windows that a prompt fills, at least 1."""
    return max(1, -(-len(_tokens(prompt, tokenizer, weighted)[0]) // WINDOW))


def truncated_tokens(
    prompt: str, tokenizer: Tokenizer, encoding: PromptEncoding = DEFAULT_ENCODING
) -> tuple[int, str]:
    """Returns (number of a prompt's tokens that are cut off, their text)."""
    cut = _tokens(prompt, tokenizer, encoding.weighted)[0][WINDOW * encoding.windows :]
    return len(cut), str(tokenizer.decode(cut)).strip() if cut else ""
