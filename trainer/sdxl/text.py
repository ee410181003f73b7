"""Prompts to SDXL's conditioning: both encoders' penultimate states side by side, and the second one's pooled vector.

N prompts, T = 77 tokens in each window, D = width of both encoders together, P = pooled width (Podell et al. 2023,
section 2.1). A long prompt is read in several windows of 75 words of its own, laid end to end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.errors import ConfigError
from trainer.sdxl.emphasis import emphasis
from trainer.sdxl.protocols import TextEncoder, Tokenizer

Encoders = tuple[TextEncoder, TextEncoder]
WINDOW = 75  # tokens of a prompt that an encoder reads at once, between its start and its end mark


@dataclass(frozen=True)
class Conditioning:
    text_NTD: torch.Tensor
    pooled_NP: torch.Tensor

    def rows(self, index: list[int] | slice) -> Conditioning:
        return Conditioning(self.text_NTD[index], self.pooled_NP[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        return Conditioning(self.text_NTD.to(device, dtype), self.pooled_NP.to(device, dtype))

    @staticmethod
    def stack(parts: list[Conditioning]) -> Conditioning:
        return Conditioning(torch.cat([p.text_NTD for p in parts]), torch.cat([p.pooled_NP for p in parts]))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How prompts are read."""

    windows: int = 1  # every prompt is read in as many, so that all have the same length
    clip_skip: int = 2  # which layer's states, from the end: 2 is the penultimate, SDXL's own
    weighted: bool = False  # whether (word:1.2) is emphasis or plain text


PLAIN = Reading()


def encode(
    prompts: list[str], tokenizers: tuple[Tokenizer, Tokenizer], encoders: Encoders, reading: Reading = PLAIN
) -> Conditioning:
    """Conditioning of each prompt; what passes the last window is cut off.

    An emphasised token moves away from, or towards, what an empty prompt says in its place: z = z_empty + w (z - z_empty),
    as in ComfyUI. Raises ConfigError when `clip_skip` is deeper than an encoder.
    """
    states, pooled = [], None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        if reading.clip_skip > encoder.config.num_hidden_layers + 1:
            raise ConfigError(
                [
                    f"clip_skip {reading.clip_skip} is deeper than this base's text encoder; take at most {encoder.config.num_hidden_layers + 1}"
                ]
            )
        windows, weights = zip(
            *(token_windows(prompt, tokenizer, reading) for prompt in prompts), strict=True
        )
        ids_MT = torch.tensor(
            [window for rows in windows for window in rows], device=encoder.device
        )  # M = N x windows
        output = encoder(ids_MT, output_hidden_states=True)
        state_MTD = output.hidden_states[-reading.clip_skip]
        weight_MT = torch.tensor([row for rows in weights for row in rows], device=encoder.device)
        if bool((weight_MT != 1).any()):
            empty = torch.tensor(token_windows("", tokenizer, PLAIN)[0], device=encoder.device)
            empty_1TD = encoder(empty, output_hidden_states=True).hidden_states[-reading.clip_skip]
            state_MTD = empty_1TD + weight_MT[..., None].to(state_MTD.dtype) * (state_MTD - empty_1TD)
        states.append(state_MTD.reshape(len(prompts), -1, state_MTD.shape[-1]))
        # The second encoder's projected vector, of the first window; the first encoder's is not used.
        pooled = output[0].reshape(len(prompts), reading.windows, *output[0].shape[1:])[:, 0]
    assert pooled is not None
    return Conditioning(torch.cat(states, dim=-1), pooled)


def token_windows(
    prompt: str, tokenizer: Tokenizer, reading: Reading
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids and weights, a row of 77 for each window: start mark, up to 75 tokens, end mark, padding."""
    ids, weights = _tokens(prompt, tokenizer, reading.weighted)
    rows, row_weights = [], []
    for number in range(reading.windows):
        part = slice(WINDOW * number, WINDOW * (number + 1))
        filling = WINDOW - len(ids[part])
        rows.append(
            [tokenizer.bos_token_id, *ids[part], tokenizer.eos_token_id, *[tokenizer.pad_token_id] * filling]
        )
        row_weights.append([1.0, *weights[part], 1.0, *[1.0] * filling])
    return rows, row_weights


def _tokens(prompt: str, tokenizer: Tokenizer, weighted: bool) -> tuple[list[int], list[float]]:
    ids, weights = [], []
    for text, weight in emphasis(prompt) if weighted else [(prompt, 1.0)]:
        found = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
        ids += found
        weights += [weight] * len(found)
    return ids, weights


def windows_of(prompt: str, tokenizer: Tokenizer, *, weighted: bool = False) -> int:
    """How many windows a prompt fills, at least one."""
    return max(1, -(-len(_tokens(prompt, tokenizer, weighted)[0]) // WINDOW))


def tokens_cut(prompt: str, tokenizer: Tokenizer, reading: Reading = PLAIN) -> int:
    """Tokens of a prompt beyond those that are read."""
    return max(0, len(_tokens(prompt, tokenizer, reading.weighted)[0]) - WINDOW * reading.windows)
