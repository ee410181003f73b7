"""What can go wrong, said to the person who can mend it.

TrainerError              one sentence: what, where, what to do
├── ConfigError           settings that can't be; all problems at once
│   └── MemoryShortError  the training would not fit the device
├── DatasetError          nothing to train on
├── BaseError             the base model can't be opened
├── CaptionerError        the captioning model can't be opened, or is none
├── LoraFileError         the file isn't a LoRA that we can read, or failed its check after saving
├── RunError              a run directory is missing, busy or damaged
└── NotFiniteError        the loss is no longer a number; carries the pictures of that batch
"""

from __future__ import annotations


class TrainerError(Exception):
    """A sentence for the user. `__main__` prints it and ends with status 1."""


class ConfigError(TrainerError):
    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class MemoryShortError(ConfigError):
    pass


class DatasetError(TrainerError):
    pass


class BaseError(TrainerError):
    pass


class CaptionerError(TrainerError):
    pass


class LoraFileError(TrainerError):
    pass


class RunError(TrainerError):
    pass


class NotFiniteError(TrainerError):
    def __init__(self, step: int, pictures: list[str]) -> None:
        self.step, self.pictures = step, pictures
        super().__init__(
            f"the loss stopped being a number at step {step} on {', '.join(pictures)}; "
            "the last good weights are kept: lower the learning rate, or remove that picture, and train again"
        )


def lacks_memory(error: BaseException) -> bool:
    """Whether the device or the system had no memory left: on the CPU torch says so in a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        hint in words for hint in ("not enough memory", "can't allocate memory", "out of memory")
    )
