"""Steps that become slow for want of memory are noticed."""

from __future__ import annotations

import psutil
import torch


class SpillWatch:
    """Notices when a step suddenly takes many times longer while memory is full: the system has begun to move it elsewhere.

    Peers' users lose days to this: 30 to 150 times slower, without a word.
    """

    TIMES = 6.0

    def __init__(self, device: torch.device) -> None:
        self.device, self.usual, self.slow, self.told = device, [], 0, False

    def check(self, seconds: float) -> str | None:
        """A sentence, once, when steps have become slow for want of memory."""
        if len(self.usual) < 5:
            self.usual.append(seconds)
            return None
        self.slow = self.slow + 1 if seconds > self.TIMES * sorted(self.usual)[2] else 0
        if self.told or self.slow < 3 or not memory_is_full(self.device):
            return None
        self.told = True
        return (
            f"steps have become {seconds / sorted(self.usual)[2]:.0f} times slower because memory is full; "
            "stop, close other programs, and go on with a smaller batch or resolution"
        )


def memory_is_full(device: torch.device) -> bool:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free < 0.03 * total
    return psutil.virtual_memory().available < 0.05 * psutil.virtual_memory().total
