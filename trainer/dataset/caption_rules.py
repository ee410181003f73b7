"""What a picture's caption becomes each time it is seen: a line drawn, wildcards, tags shuffled and left out."""

from __future__ import annotations

import dataclasses
import random
import re
from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.dataset.captions import without_trigger
from trainer.dataset.manifest import Item

_WILDCARD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class CaptionRules:
    """Captions as the config asks for them: a function of seed and place in the training alone, so that a resumed run draws the same."""

    config: TrainConfig

    @property
    def varies(self) -> bool:
        """Whether one picture may be seen with different captions, the empty one aside."""
        config = self.config
        return (
            config.shuffle_tags
            or config.tag_dropout > 0
            or config.caption_lines
            or config.wildcards
            or config.base_prior_share > 0
        )

    def draw(self, item: Item, chance: random.Random) -> str:
        """One caption of a picture. Class pictures keep theirs as it is."""
        if item.role == "class":
            return item.caption
        text = item.caption
        if self.config.caption_lines and item.captions:
            text = chance.choice(item.captions)
        if self.config.wildcards:
            text = with_wildcards(text, chance)
        if self.config.shuffle_tags or self.config.tag_dropout:
            text = self._with_tags(text, chance)
        return " ".join(
            part
            for part in (self.config.caption_prefix.strip(), text, self.config.caption_suffix.strip())
            if part
        )

    def fixed(self, item: Item) -> str:
        """A picture's caption with nothing drawn, for measuring."""
        still = dataclasses.replace(
            self.config, caption_lines=False, wildcards=False, shuffle_tags=False, tag_dropout=0.0
        )
        return CaptionRules(still).draw(item, random.Random(0))

    def _with_tags(self, text: str, chance: random.Random) -> str:
        tags = [tag.strip() for tag in text.split(",") if tag.strip()]
        kept, free = tags[: self.config.keep_tokens], tags[self.config.keep_tokens :]
        if self.config.shuffle_tags:
            chance.shuffle(free)
        trigger = self.config.trigger.strip().casefold()
        stays = [tag.casefold() == trigger or chance.random() >= self.config.tag_dropout for tag in free]
        return ", ".join(kept + [tag for tag, stay in zip(free, stays, strict=True) if stay])

    def is_base_prior(self, item: Item, chance: random.Random) -> bool:
        """Whether this time the picture teaches the base's own answer instead of its own."""
        return (
            item.role != "class"
            and self.config.base_prior_share > 0
            and chance.random() < self.config.base_prior_share
        )

    def class_caption(self, item: Item) -> str:
        return self.config.prior_caption or without_trigger(item.caption, self.config.trigger)

    def at(self, items: list[Item], position: int) -> list[tuple[str, bool]]:
        """Caption of each row of the batch at `position`, and whether the row teaches the base's own answer."""
        drawn = []
        for row, item in enumerate(items):
            chance = random.Random(f"{self.config.seed}/caption/{position}/{row}")
            base_prior = self.is_base_prior(item, chance)
            drawn.append((self.class_caption(item) if base_prior else self.draw(item, chance), base_prior))
        return drawn


def with_wildcards(text: str, chance: random.Random) -> str:
    """`{red|blue}` becomes one of its words, inner ones first."""
    while _WILDCARD.search(text):
        text = _WILDCARD.sub(lambda found: chance.choice(found[1].split("|")).strip(), text, count=1)
    return " ".join(text.split())
