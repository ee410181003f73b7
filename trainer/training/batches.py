"""Which pictures each step sees: a function of seed and step alone, so that a resumed run needs no position."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.dataset.manifest import Item


@dataclass(frozen=True)
class Batches:
    """Pictures of one bucket train together; each epoch shuffles anew. A bucket's last batch may be smaller."""

    items: tuple[Item, ...]
    buckets: tuple[tuple[int, int], ...]  # of each item
    size: int
    seed: int
    _latest: dict[int, list[list[int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # the epoch asked for last

    def epoch(self, number: int) -> list[list[int]]:
        """Batches of item indices for epoch `number`."""
        draw = random.Random(f"{self.seed}/{number}")
        rows: dict[tuple[int, int], list[int]] = {}
        for index, (item, bucket) in enumerate(zip(self.items, self.buckets, strict=True)):
            rows.setdefault(bucket, []).extend([index] * item.repeats)
        batches = []
        for bucket in sorted(rows):
            order = rows[bucket][:]
            draw.shuffle(order)
            batches += [order[start : start + self.size] for start in range(0, len(order), self.size)]
        draw.shuffle(batches)
        return batches

    def first(self, positions: int) -> Iterator[tuple[int, list[int]]]:
        """(position, batch) of the first `positions` batches of the training."""
        for number in range(-(-positions // self.per_epoch)):
            for offset, batch in enumerate(self.epoch(number)):
                if number * self.per_epoch + offset < positions:
                    yield number * self.per_epoch + offset, batch

    @functools.cached_property
    def per_epoch(self) -> int:
        counts: dict[tuple[int, int], int] = {}
        for item, bucket in zip(self.items, self.buckets, strict=True):
            counts[bucket] = counts.get(bucket, 0) + item.repeats
        return sum(-(-count // self.size) for count in counts.values())

    def at(self, position: int) -> list[int]:
        """The batch at a position counted from the start of the training."""
        number, offset = divmod(position, self.per_epoch)
        if number not in self._latest:
            self._latest.clear()
            self._latest[number] = self.epoch(number)
        return self._latest[number][offset]
