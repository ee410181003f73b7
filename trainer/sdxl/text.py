"""Prompts to SDXL's conditioning: both encoders' penultimate states side by side, and the second one's pooled vector.

N prompts, T = 77 tokens, D = width of both encoders together, P = pooled width (Podell et al. 2023, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Encoders = tuple[Any, Any]


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


def encode(prompts: list[str], tokenizers: tuple[Any, Any], encoders: Encoders) -> Conditioning:
    """Conditioning of each prompt; what passes 77 tokens is cut off."""
    states, pooled = [], None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        output = encoder(ids.to(encoder.device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output[0]  # the second encoder's projected vector; the first one's is not used
    assert pooled is not None
    return Conditioning(torch.cat(states, dim=-1), pooled)


def tokens_cut(prompt: str, tokenizer: Any) -> int:
    """Tokens of a prompt beyond the 75 that the encoders read."""
    return max(0, len(tokenizer(prompt, truncation=False).input_ids) - 77)
