"""Errors whose message is shown to the user: what happened, where, and what to do.

TrainerError              any of the following
├── ConfigError           invalid or contradictory settings; lists all problems at once
│   └── MemoryShortError  the training does not fit into the memory of the device
├── DatasetError          the dataset has no picture to train on, or can't be read
├── BaseError             the base model can't be opened
├── CaptionerError        the captioning model can't be opened, or is of another kind
├── LoraFileError         the file is no LoRA that can be read, or failed verification after saving
├── RunError              a run directory is missing, in use or damaged
└── NotFiniteError        the loss became NaN or infinite; carries the pictures of that batch

Programming errors are plain exceptions; `trainer/__main__.py` reports them as unexpected.
"""

from __future__ import annotations


class TrainerError(Exception):
    """An error with a message for the user. `__main__` prints it and exits with status 1."""


class ConfigError(TrainerError):
    """Invalid or contradictory settings."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class MemoryShortError(ConfigError):
    """The training does not fit into the memory of the device."""


class DatasetError(TrainerError):
    """The dataset has no picture to train on, or can't be read."""


class BaseError(TrainerError):
    """The base model can't be opened."""


class CaptionerError(TrainerError):
    """The captioning model can't be opened, or is of another kind."""


class LoraFileError(TrainerError):
    """The file is no LoRA that can be read, or failed verification after saving."""


class RunError(TrainerError):
    """A run directory is missing, in use or damaged."""


class NotFiniteError(TrainerError):
    """The loss became NaN or infinite: training diverged."""

    def __init__(self, step: int, pictures: list[str]) -> None:
        self.step, self.pictures = step, pictures
        super().__init__(
            f"Loss became NaN or infinite at step {step} (images: {', '.join(pictures)}). The last good "
            "weights are kept; lower the learning rate or remove a damaged image, and train again."
        )


def lacks_memory(error: BaseException) -> bool:
    """True if the device or the system ran out of memory.

    CUDA raises torch.OutOfMemoryError, whose class name is compared, because this module must not import
    torch. On the CPU torch raises a plain RuntimeError, which only its message identifies.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    hints = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(hint in message for hint in hints)
