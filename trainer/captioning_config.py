"""What may be chosen for captioning: each option once, with label, unit, range and help. Command line, job and page derive from it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from trainer.config import fitted, problem_with, setting
from trainer.dataset.captions import with_trigger
from trainer.errors import ConfigError
from trainer.headers.captioner import BLIP, BLIP_2, FLORENCE_2, WD_TAGGER

# A captioning model: images -> one text each.
Describe = Callable[[list[Image.Image]], list[str]]
DETAILS = ("short", "detailed", "paragraph")
GROUPS = {
    BLIP: ("captions", "sentences"),
    BLIP_2: ("captions", "sentences"),
    FLORENCE_2: ("captions", "sentences", "detail"),
    WD_TAGGER: ("captions", "tags"),
}


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """All that decides a caption, besides model and picture."""

    overwrite: bool = setting(
        False,
        "Overwrite captions",
        group="captions",
        help="Captions every picture anew, also where you wrote one yourself; off, only pictures without a caption get one.",
    )
    trigger: str = setting(
        "", "Trigger word", group="captions", help="Put before every caption that lacks it."
    )
    prefix: str = setting(
        "", "Prefix", group="captions", help="Text before every caption, after the trigger word."
    )
    suffix: str = setting("", "Suffix", group="captions", help="Text after every caption.")
    batch: int = setting(
        4,
        "Batch",
        unit="pictures",
        group="captions",
        low=1,
        high=256,
        help="Pictures that the model looks at together; 1 needs least memory.",
    )
    detail: str = setting(
        "detailed",
        "Detail",
        group="detail",
        choices=DETAILS,
        help="How much Florence-2 says: a short sentence, a detailed one, or a paragraph.",
    )
    max_length: int = setting(
        75,
        "Longest caption",
        unit="tokens",
        group="sentences",
        low=5,
        high=1024,
        help="A training reads 75 tokens unless caption_windows says more. A last sentence that does not fit is left out.",
    )
    general_threshold: float = setting(
        0.35,
        "Threshold of tags",
        group="tags",
        low=0.0,
        high=1.0,
        help="Tags that the model is less sure of are left out.",
    )
    character_threshold: float = setting(
        0.85,
        "Threshold of characters",
        group="tags",
        low=0.0,
        high=1.0,
        help="The same, of names of known characters; 1 leaves them out unless the model is certain.",
    )
    exclude_tags: tuple[str, ...] = setting(
        (),
        "Tags left out",
        group="tags",
        help="Tags that no caption gets, such as the style you are teaching.",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError with every problem found."""
        found = (
            problem_with(declared, getattr(self, declared.name), HINTS)
            for declared in dataclasses.fields(self)
        )
        problems = [problem for problem in found if problem]
        if problems:
            raise ConfigError(problems)

    def worded(self, text: str) -> str:
        """A caption as it is written down: with prefix, suffix and trigger word."""
        return with_trigger(
            " ".join(part for part in (self.prefix.strip(), text, self.suffix.strip()) if part), self.trigger
        )


HINTS = typing.get_type_hints(CaptionOptions)


def options_for(kind: str) -> list[dataclasses.Field]:
    """The options that a kind of model listens to."""
    return [
        declared
        for declared in dataclasses.fields(CaptionOptions)
        if declared.metadata["group"] in GROUPS[kind]
    ]


def options_from(values: dict[str, Any]) -> CaptionOptions:
    """Options from loose values (JSON, form, command line). Raises ConfigError, also for an unknown name."""
    unknown = [
        f"{key!r} is no option of captioning; there are {', '.join(HINTS)}"
        for key in values
        if key not in HINTS
    ]
    if unknown:
        raise ConfigError(unknown)
    return CaptionOptions(**{key: fitted(value, HINTS[key]) for key, value in values.items()})
