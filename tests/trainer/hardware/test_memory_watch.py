"""Warning about steps that become slow because memory is full."""

from __future__ import annotations

import torch

from trainer.hardware.memory_watch import SpillWatch

CPU = torch.device("cpu")


def test_slow_steps_with_full_memory_cause_one_warning(monkeypatch):
    watch = SpillWatch(CPU)
    monkeypatch.setattr("trainer.hardware.memory_watch.memory_is_full", lambda device: True)
    warnings = [watch.check(seconds) for seconds in (1, 1, 1.2, 1, 1, 1, 30, 1, 30, 30, 30, 30)]
    assert [bool(words) for words in warnings] == [False] * 10 + [True, False]
    assert "30 times slower because memory is full" in (warnings[10] or "")


def test_slow_steps_with_free_memory_cause_no_warning(monkeypatch):
    watch = SpillWatch(CPU)
    monkeypatch.setattr("trainer.hardware.memory_watch.memory_is_full", lambda device: False)
    assert not any(watch.check(seconds) for seconds in [1.0] * 5 + [60.0] * 10)
