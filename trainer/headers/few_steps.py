"""Advice for models distilled to few steps, which a file's name and title reveal.

A checkpoint merged with such a model has no other sign of it. Sampled with the usual steps and guidance, its
images are burnt; sampled with few steps by another sampler, they are blurred. The recommended values are those of
the models' authors: LCM-LoRA (latent-consistency), SDXL-Lightning and Hyper-SD (ByteDance), SDXL Turbo (Stability
AI), TCD (Zheng et al. 2024) and DMD2 (Yin et al. 2024).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FewStepKind:
    """A kind of distillation and the values that its authors recommend."""

    name: str
    pattern: str  # regular expression of a name, in lower case
    sampler: str
    steps: int
    guidance: float = 1.0


# A word's end is also where digits or a capital letter begin, as in "Turbo8" and "xlTurboDPM".
_KINDS = (
    FewStepKind("LCM", "lcm", "lcm", 4),
    FewStepKind("TCD", "tcd", "tcd", 4),
    FewStepKind("Hyper-SD", r"hyper[-_ ]?(?:sd|sdxl|xl)", "tcd", 8),
    FewStepKind("Lightning", "lightning", "euler_sgm_uniform", 4),
    FewStepKind("Turbo", "turbo", "euler_a_sgm_uniform", 4),
    FewStepKind("DMD2", "dmd2?", "lcm", 4),
)
_PATTERNS = tuple((kind, re.compile(rf"(?<![a-z]){kind.pattern}(?![a-z])")) for kind in _KINDS)
_USUAL_STEPS, _USUAL_GUIDANCE = 12, 2.0  # above these, a model of few steps is not sampled as it must be


def few_step_kind(name: str, metadata: Mapping[str, str]) -> FewStepKind | None:
    """Returns the kind of distillation that a file's name or title contains; None if there is none.

    Args:
        name: of the file or folder, without a path.
        metadata: of its header.
    """
    texts = (name, metadata.get("modelspec.title", ""), metadata.get("ss_output_name", ""))
    for text in texts:
        # "xlLightning" becomes "xl lightning": a capital letter begins a word.
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=XL)(?=[A-Z][a-z])", " ", text[:300]).lower()
        for kind, pattern in _PATTERNS:
            if pattern.search(words):
                return kind
    return None


def few_step_advice(
    kind: FewStepKind | None, name: str, *, steps: int | None = None, guidance: float = 0.0
) -> str:
    """Returns a sentence on how to sample a model of few steps; "" for others.

    Args:
        kind: from `few_step_kind`.
        name: of the file, for the sentence.
        steps: sampling steps that are used; the sentence is "" if they and `guidance` fit the kind already.
        guidance: guidance scale that is used.
    """
    if kind is None:
        return ""
    if steps is not None and steps <= _USUAL_STEPS and guidance <= _USUAL_GUIDANCE:
        return ""
    return (
        f"{name} looks like a {kind.name} model, which is made for few steps: "
        f"use --sampler {kind.sampler} --steps {kind.steps} --guidance {kind.guidance:g}"
    )
