"""Settings of captions: dropout, shuffling, prefixes, and how the text encoders read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

setting = partial(declaration.setting, group="captions")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Settings of captions during training."""

    caption_dropout: float = setting(
        0.05,
        "Caption dropout",
        bounds=Bounds(0.0, 1.0),
        help="Fraction of the pictures that are trained without their caption. More makes the LoRA act "
        "without being prompted.",
    )
    tag_dropout: float = setting(
        0.0,
        "Tag dropout",
        bounds=Bounds(0.0, 1.0),
        help="Chance that a tag (text between commas) is left out, so that the LoRA depends less on single "
        "tags. The trigger word and keep tokens always remain.",
    )
    shuffle_tags: bool = setting(
        False,
        "Shuffle captions",
        help="Shuffles the tags of a caption in each step, so that their order does not matter.",
    )
    keep_tokens: int = setting(
        0,
        "Keep tokens",
        bounds=Bounds(0, 100, "tags"),
        help="Number of first tags that are neither shuffled nor dropped; the trigger counts as one. Tags in front "
        "of ||| in a caption are kept in any case.",
    )
    caption_lines: bool = setting(
        False,
        "Multi-line captions",
        help="Treats each line of a caption file as a caption of its own and picks one at random in each "
        "step; otherwise the lines are joined.",
    )
    wildcards: bool = setting(
        False,
        "Wildcards",
        help="Replaces {red|blue} in a caption by one of the words at random in each step.",
    )
    caption_prefix: str = setting(
        "", "Caption prefix", help="Text in front of every caption; it is never shuffled or dropped."
    )
    caption_suffix: str = setting(
        "", "Caption suffix", help="Text at the end of every caption; it is never shuffled or dropped."
    )
    caption_windows: int = setting(
        1,
        "Max token length",
        bounds=Bounds(1, 8, "times 75 tokens"),
        help="Longest caption that the text encoders read, in windows of 75 tokens: 2 is 150, 3 is 225. "
        "More costs memory and is needed only for long captions.",
    )
    weighted_captions: bool = setting(
        False,
        "Weighted captions",
        help="Reads (word:1.2) in a caption as emphasis, as A1111 does; otherwise brackets are plain text, "
        "as in many tags.",
    )
    clip_skip: int = setting(
        2,
        "Clip skip",
        bounds=Bounds(2, 12),
        help="Layer of the text encoders that is used, counted from the end. SDXL is made for 2; change it "
        "only if the base model asks for it.",
    )
