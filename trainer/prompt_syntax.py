r"""Syntax of other tools in captions and prompts, and how Impasto reads it.

                             in a caption                          in a prompt
    ganyu \(genshin impact\) plain brackets                        plain brackets
    (word:1.2), (word)       plain text, or emphasis with          emphasis, as in A1111 and ComfyUI
                             `weighted_captions`
    <lora:name:0.8>          left out and reported                 left out and reported
    a, b ||| c, d            a and b stay in front; the mark       a, b, c, d
                             itself is never read

So a caption that is used as a prompt is read as in the training if its plain brackets are escaped;
`as_prompt` escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

KEEP_TOKENS_SEPARATOR = "|||"  # of kohya's scripts, by convention
_CALL = re.compile(r"<(?:lora|lyco|lycoris|locon|loha|lokr|hypernet|hypernetwork):[^<>]*>", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([()\[\]\\])")
_TO_ESCAPE = re.compile(r"[()\[\]]|\\(?=[()\[\]\\])")
_PLAIN_WEIGHT = re.compile(r"(?<!\\)\([^()]*:\s*[+-]?\d*\.?\d+\s*\)")
_PARAMETERS = re.compile(r"\n\s*(?:Negative prompt:(?P<negative>.*?)\n\s*)?Steps: \d+, .*", re.DOTALL)


def without_calls(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns (the text without calls such as `<lora:ink:0.8>`, the calls).

    A tag that is only a call is left out with its comma.
    """
    calls = tuple(_CALL.findall(text))
    if not calls:
        return text, ()
    tags = []
    for tag in text.split(","):
        rest = " ".join(_CALL.sub(" ", tag).split())
        if rest or not _CALL.search(tag):
            tags.append(rest)
    return ", ".join(tags), calls


def without_separators(text: str) -> str:
    """Replaces kohya's `|||` by a comma."""
    if KEEP_TOKENS_SEPARATOR not in text:
        return text
    return ", ".join(
        part for part in (part.strip(" ,") for part in text.split(KEEP_TOKENS_SEPARATOR)) if part
    )


def read_caption(text: str, *, weighted: bool) -> str:
    r"""Returns a caption as the text encoders read it.

    Args:
        weighted: brackets are emphasis, which the encoding resolves; otherwise `\(` becomes `(` here.
    """
    text = without_separators(without_calls(text)[0])
    return text if weighted else _ESCAPED.sub(r"\1", text)


def as_prompt(caption: str) -> str:
    """Returns the prompt that is read as this plain caption: its brackets are escaped."""
    return _TO_ESCAPE.sub(lambda match: f"\\{match[0]}", caption)


@dataclass(frozen=True)
class PastedPrompt:
    """A prompt without the syntax of other tools."""

    prompt: str
    negative: str = ""  # of a pasted `parameters` text
    calls: tuple[str, ...] = ()
    has_settings: bool = False  # it was a `parameters` text, with steps, sampler and seed


def read_prompt(text: str) -> PastedPrompt:
    """Returns a prompt, also of the whole `parameters` text that A1111 and Impasto write into images."""
    match = _PARAMETERS.search(text)
    body = text[: match.start()] if match else text
    prompt, calls = without_calls(body)
    negative = (match["negative"] or "").strip() if match else ""
    return PastedPrompt(without_separators(prompt), without_calls(negative)[0], calls, match is not None)


def prompt_notes(prompts: Iterable[str]) -> list[str]:
    """Returns at most two sentences on what is left out of some prompts."""
    read = [read_prompt(prompt) for prompt in prompts]
    notes = []
    calls = list(dict.fromkeys(call for prompt in read for call in prompt.calls))
    if calls:
        notes.append(f"{_listed(calls)} left out of the prompt; LoRA files are chosen beside it")
    if any(prompt.has_settings for prompt in read):
        notes.append(
            "steps, sampler, seed and size of the pasted text are left out; set them beside the prompt"
        )
    return notes


def caption_notes(captions: Iterable[tuple[str, str]]) -> list[str]:
    """Returns sentences on syntax of other tools in captions.

    Args:
        captions: (picture, caption) of each.
    """
    calls: dict[str, None] = {}
    called: list[str] = []
    weights: list[str] = []
    for name, caption in captions:
        if found := without_calls(caption)[1]:
            calls.update(dict.fromkeys(found))
            called.append(name)
        if _PLAIN_WEIGHT.search(caption):
            weights.append(name)
    notes = []
    if called:
        notes.append(f"{_listed(list(calls))} left out of the captions of {_names(called)}")
    if weights:
        notes.append(
            f"captions with weights such as (word:1.2), which are plain text unless weighted_captions is on: "
            f"{_names(weights)}"
        )
    return notes


def _listed(calls: list[str]) -> str:
    return f"{_names(calls)} {'is' if len(calls) == 1 else 'are'}"


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
