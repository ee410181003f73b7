"""The images of a step depend on the seed and the step alone."""

from __future__ import annotations

import dataclasses

from tests.conftest import INK
from trainer.dataset.scan import scan
from trainer.training.batches import Batches


def batches(seed: int = 3) -> Batches:
    items = tuple(dataclasses.replace(item, repeats=1 + n % 2) for n, item in enumerate(scan(INK).items[:9]))
    return Batches(items, tuple((64, 64) if n % 3 else (96, 64) for n in range(len(items))), 2, seed)


def test_a_batch_does_not_depend_on_the_batches_read_before_it():
    """A resumed run begins in the middle, and several processes read every second batch."""
    order = batches()
    count = 3 * order.per_epoch
    in_order = [order.at(position) for position in range(count)]
    assert in_order == [batch for number in range(3) for batch in order.epoch(number)]
    assert [order.at(position) for position in reversed(range(count))] == in_order[::-1]
    assert [batches().at(position) for position in range(count)] == in_order
    assert [batches(4).at(position) for position in range(count)] != in_order


def test_every_image_occurs_as_often_as_its_repeats_in_each_epoch():
    order = batches()
    for number in range(2):
        seen = [row for batch in order.epoch(number) for row in batch]
        assert [seen.count(row) for row in range(len(order.items))] == [item.repeats for item in order.items]
        assert all(len({order.buckets[row] for row in batch}) == 1 for batch in order.epoch(number))
