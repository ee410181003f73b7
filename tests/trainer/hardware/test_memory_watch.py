"""Steps that become slow because memory is full are told; slow ones for another reason are not."""

from __future__ import annotations

import torch

from trainer.hardware.memory_watch import SpillWatch

CPU = torch.device("cpu")


def test_slow_steps_on_full_memory_are_told_once(monkeypatch):
    watch = SpillWatch(CPU)
    monkeypatch.setattr("trainer.hardware.memory_watch.memory_is_full", lambda device: True)
    said = [watch.check(seconds) for seconds in (1, 1, 1.2, 1, 1, 1, 30, 1, 30, 30, 30, 30)]
    assert [bool(words) for words in said] == [False] * 10 + [True, False]
    assert "30 times slower because memory is full" in (said[10] or "")


def test_slow_steps_with_memory_to_spare_are_no_fault(monkeypatch):
    watch = SpillWatch(CPU)
    monkeypatch.setattr("trainer.hardware.memory_watch.memory_is_full", lambda device: False)
    assert not any(watch.check(seconds) for seconds in [1.0] * 5 + [60.0] * 10)
