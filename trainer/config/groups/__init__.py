"""Declarations of all settings, one dataclass for each group; `TrainConfig` inherits them."""
