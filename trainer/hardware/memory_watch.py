"""Detection of training steps that slow down because memory is full."""

from __future__ import annotations

import torch

from trainer.hardware.limits import available_memory, total_memory


class SpillWatch:
    """Warns once when steps suddenly take several times as long while memory is full.

    The operating system or the driver then moves memory to disk or to main memory. Training continues without
    an error, 30 to 150 times slower, and a user may notice it only after days.
    """

    FACTOR = 6.0  # of the usual duration, from which a step counts as slow

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.usual_seconds: list[float] = []  # of the first five steps
        self.slow_steps = 0  # in a row
        self.has_warned = False

    def check(self, seconds: float) -> str | None:
        """Records the duration of a step; returns a warning after the third slow step in a row, once."""
        if len(self.usual_seconds) < 5:
            self.usual_seconds.append(seconds)
            return None
        median = sorted(self.usual_seconds)[2]
        self.slow_steps = self.slow_steps + 1 if seconds > self.FACTOR * median else 0
        if self.has_warned or self.slow_steps < 3 or not memory_is_full(self.device):
            return None
        self.has_warned = True
        return (
            f"steps have become {seconds / median:.0f} times slower because memory is full; "
            "stop the training, close other programs, and continue with a smaller batch or resolution"
        )


def memory_is_full(device: torch.device) -> bool:
    """Returns whether less than 3 % of a card's memory, or 5 % of main memory, is free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free < 0.03 * total
    return available_memory() < 0.05 * total_memory()
