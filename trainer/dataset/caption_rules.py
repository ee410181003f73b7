"""Random variation of captions: choice of a line, wildcards, shuffled and dropped tags."""

from __future__ import annotations

import dataclasses
import random
import re
from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.dataset.captions import has_words, trigger_tags, without_trigger
from trainer.dataset.manifest import Item
from trainer.prompt_syntax import KEEP_TOKENS_SEPARATOR, read_caption

_WILDCARD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class CaptionRules:
    """Captions of each batch according to the settings.

    They depend only on the seed and the position in the training, so that a resumed run draws the same ones.
    """

    config: TrainConfig

    @property
    def varies(self) -> bool:
        """Returns whether a picture can have different captions in different batches (apart from the empty
        caption).
        """
        config = self.config
        return (
            config.shuffle_tags
            or config.tag_dropout > 0
            or config.caption_lines
            or config.wildcards
            or config.base_prior_share > 0
        )

    def draw(self, item: Item, rng: random.Random) -> str:
        """Draws one caption of a picture. Class images have a fixed caption."""
        if item.role == "class":
            return self._as_read(item.caption)
        text = item.caption
        if self.config.caption_lines and item.captions:
            text = rng.choice(item.captions)
        if self.config.wildcards:
            text = with_wildcards(text, rng)
        if self.config.shuffle_tags or self.config.tag_dropout:
            text = self._vary_tags(text, rng)
        parts = (self.config.caption_prefix.strip(), text, self.config.caption_suffix.strip())
        return self._as_read(" ".join(part for part in parts if part))

    def _as_read(self, caption: str) -> str:
        return read_caption(caption, weighted=self.config.weighted_captions)

    def texts(self, item: Item) -> list[str]:
        """Returns all captions that a picture can have, apart from shuffled and dropped tags and wildcards."""
        lines = item.captions if self.config.caption_lines and item.captions else (item.caption,)
        return [self.fixed(dataclasses.replace(item, caption=line)) for line in lines]

    def fixed(self, item: Item) -> str:
        """Returns a picture's caption without random variation, for validation."""
        config = dataclasses.replace(
            self.config, caption_lines=False, wildcards=False, shuffle_tags=False, tag_dropout=0.0
        )
        return CaptionRules(config).draw(item, random.Random(0))

    def _vary_tags(self, text: str, rng: random.Random) -> str:
        """Shuffles and drops tags. `first ||| others ||| last` of kohya's scripts keeps the outer parts as they
        are and replaces `keep_tokens`. A trigger in front stays there; one of several tags counts as one.
        """
        front, *others = (self._tags(part) for part in text.split(KEEP_TOKENS_SEPARATOR, 2))
        if others:
            first, rest, last = front, others[0], [tag for part in others[1:] for tag in part]
        else:
            keep = self.config.keep_tokens
            first, rest, last = front[:keep], front[keep:], []
        if not first and rest and rest[0].casefold() == self._trigger.casefold():
            first, rest = rest[:1], rest[1:]
        if self.config.shuffle_tags:
            rng.shuffle(rest)
        stays = [self._has_trigger(tag) or rng.random() >= self.config.tag_dropout for tag in rest]
        return ", ".join(first + [tag for tag, stay in zip(rest, stays, strict=True) if stay] + last)

    @property
    def _trigger(self) -> str:
        return ", ".join(trigger_tags(self.config.trigger))

    def _has_trigger(self, tag: str) -> bool:
        return any(has_words(tag, words) for words in trigger_tags(self.config.trigger))

    def _tags(self, text: str) -> list[str]:
        """Returns the tags of a text, with the tags of a trigger joined where they follow each other."""
        tags = [tag.strip() for tag in text.split(",") if tag.strip()]
        trigger = [tag.casefold() for tag in trigger_tags(self.config.trigger)]
        if len(trigger) > 1:
            low = [tag.casefold() for tag in tags]
            for start in range(len(tags) - len(trigger) + 1):
                if low[start : start + len(trigger)] == trigger:
                    return [*tags[:start], self._trigger, *tags[start + len(trigger) :]]
        return tags

    def is_base_prior(self, item: Item, rng: random.Random) -> bool:
        """Draws whether the picture's target is the base model's own prediction this time (prior
        preservation).
        """
        return (
            item.role != "class"
            and self.config.base_prior_share > 0
            and rng.random() < self.config.base_prior_share
        )

    def class_caption(self, item: Item) -> str:
        """Returns the caption with which a picture's prior is preserved."""
        caption = self.config.prior_caption or without_trigger(item.caption, self.config.trigger)
        return self._as_read(caption)

    def at(self, items: list[Item], position: int) -> list[tuple[str, bool]]:
        """Returns (caption, is base prior) for each row of the batch at `position` in the training."""
        rows = []
        for row, item in enumerate(items):
            rng = random.Random(f"{self.config.seed}/caption/{position}/{row}")
            base_prior = self.is_base_prior(item, rng)
            rows.append((self.class_caption(item) if base_prior else self.draw(item, rng), base_prior))
        return rows


def with_wildcards(text: str, rng: random.Random) -> str:
    """Replaces each `{red|blue}` by one of its alternatives, inner braces first."""
    while _WILDCARD.search(text):
        text = _WILDCARD.sub(lambda match: rng.choice(match[1].split("|")).strip(), text, count=1)
    return " ".join(text.split())
