"""Options of captioning, declared once; command line, captioning job and page are derived from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from trainer.config import Bounds, coerced_values, problems_in, setting
from trainer.dataset.captions import with_trigger
from trainer.errors import ConfigError
from trainer.headers.captioner import BLIP, BLIP_2, FLORENCE_2, WD_TAGGER

# A loaded captioning model: from images to one text for each.
Describe = Callable[[list[Image.Image]], list[str]]
DETAILS = ("short", "detailed", "paragraph")

# Groups of options that each kind of model uses.
GROUPS = {
    BLIP: ("captions", "sentences"),
    BLIP_2: ("captions", "sentences"),
    FLORENCE_2: ("captions", "sentences", "detail"),
    WD_TAGGER: ("captions", "tags"),
}


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Options of captioning besides the model and the pictures."""

    overwrite: bool = setting(
        False,
        "Overwrite captions",
        group="captions",
        help="Replaces existing captions, also those that you wrote; otherwise only pictures without a "
        "caption get one.",
    )
    trigger: str = setting(
        "",
        "Trigger word",
        group="captions",
        help="Added in front of every caption that lacks it.",
    )
    prefix: str = setting(
        "",
        "Prefix",
        group="captions",
        help="Text in front of every caption, after the trigger word.",
    )
    suffix: str = setting("", "Suffix", group="captions", help="Text at the end of every caption.")
    batch: int = setting(
        4,
        "Batch size",
        group="captions",
        bounds=Bounds(1, 256, "pictures"),
        help="Pictures that the model processes at once; 1 needs least memory.",
    )
    detail: str = setting(
        "detailed",
        "Detail",
        group="detail",
        choices=DETAILS,
        help="Length of Florence-2's captions: a short sentence, a detailed one, or a paragraph.",
    )
    max_length: int = setting(
        75,
        "Max length",
        group="sentences",
        bounds=Bounds(5, 1024, "tokens"),
        help="Longest caption; a last sentence that does not fit is left out. Training reads 75 tokens "
        "unless caption_windows is larger.",
    )
    general_threshold: float = setting(
        0.35,
        "General tags threshold",
        group="tags",
        bounds=Bounds(0.0, 1.0),
        help="Lowest confidence of general tags; a higher threshold gives fewer tags.",
    )
    character_threshold: float = setting(
        0.85,
        "Character tags threshold",
        group="tags",
        bounds=Bounds(0.0, 1.0),
        help="Lowest confidence of names of known characters; 1 leaves nearly all of them out.",
    )
    exclude_tags: tuple[str, ...] = setting(
        (),
        "Exclude tags",
        group="tags",
        help="Tags that no caption gets (undesired tags), such as the style that you train.",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError with every problem found."""
        problems = problems_in(self)
        if problems:
            raise ConfigError(problems)

    def complete_caption(self, text: str) -> str:
        """Adds prefix, suffix and trigger word to the text of a model."""
        parts = (self.prefix.strip(), text, self.suffix.strip())
        return with_trigger(" ".join(part for part in parts if part), self.trigger)


def options_for(kind: str) -> list[dataclasses.Field[Any]]:
    """The options that a kind of model uses."""
    declared = dataclasses.fields(CaptionOptions)
    return [option for option in declared if option.metadata["group"] in GROUPS[kind]]


def options_from(values: Mapping[str, Any]) -> CaptionOptions:
    """Creates options from values of JSON, form or command line.

    Raises:
        ConfigError: for an unknown name or an invalid value.
    """
    names = [declared.name for declared in dataclasses.fields(CaptionOptions)]
    unknown = [
        f"unknown captioning option {name!r}; the options are {', '.join(names)}"
        for name in values
        if name not in names
    ]
    if unknown:
        raise ConfigError(unknown)
    return CaptionOptions(**coerced_values(CaptionOptions, values))
