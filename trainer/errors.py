"""What can go wrong, said to the person who can mend it.

TrainerError              one sentence: what, where, what to do
├── ConfigError           settings that can't be; all problems at once
├── DatasetError          nothing to train on
├── BaseError             the base model can't be opened
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


class DatasetError(TrainerError):
    pass


class BaseError(TrainerError):
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
