"""The order of batches: a function of seed and position, so that a resumed run needs no stored state."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.dataset.manifest import Item


@dataclass(frozen=True)
class Batches:
    """Batches of images of one bucket, in a new order each epoch. A bucket's last batch may be smaller."""

    items: tuple[Item, ...]
    buckets: tuple[tuple[int, int], ...]  # (width, height) of each item in px
    size: int
    seed: int
    # The epoch requested last: computing one takes longer than a step in large datasets.
    _latest: dict[int, list[list[int]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def epoch(self, number: int) -> list[list[int]]:
        """Returns the batches of epoch `number`, counted from 0, as indices of items."""
        generator = random.Random(f"{self.seed}/{number}")
        rows: dict[tuple[int, int], list[int]] = {}
        for index, (item, bucket) in enumerate(zip(self.items, self.buckets, strict=True)):
            rows.setdefault(bucket, []).extend([index] * item.repeats)
        batches = []
        for bucket in sorted(rows):
            order = rows[bucket][:]
            generator.shuffle(order)
            batches += [order[start : start + self.size] for start in range(0, len(order), self.size)]
        generator.shuffle(batches)
        return batches

    def first(self, positions: int) -> Iterator[tuple[int, list[int]]]:
        """Yields (position, batch) of the first `positions` batches of the training."""
        for number in range(-(-positions // self.per_epoch)):
            for offset, batch in enumerate(self.epoch(number)):
                if number * self.per_epoch + offset < positions:
                    yield number * self.per_epoch + offset, batch

    @functools.cached_property
    def per_epoch(self) -> int:
        """The number of batches of an epoch."""
        counts: dict[tuple[int, int], int] = {}
        for item, bucket in zip(self.items, self.buckets, strict=True):
            counts[bucket] = counts.get(bucket, 0) + item.repeats
        return sum(-(-count // self.size) for count in counts.values())

    def at(self, position: int) -> list[int]:
        """Returns the batch at a position counted from the start of the training."""
        number, offset = divmod(position, self.per_epoch)
        if number not in self._latest:
            self._latest.clear()
            self._latest[number] = self.epoch(number)
        return self._latest[number][offset]
