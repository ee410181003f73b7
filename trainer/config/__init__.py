"""Settings of a training, each declared once in `groups/`.

declaration.py    setting(): a dataclass field with label, bounds, choices and help
groups/           the declarations, one file for each group of settings
train_config.py   TrainConfig, which inherits all groups, and contradictions between settings
validation.py     one validator for each type
toml.py           config.toml
docs.py           the table of docs/settings.md
"""

from trainer.config.declaration import Bounds, coerced_values, item_types, kind_of, setting
from trainer.config.docs import settings_table
from trainer.config.groups.adapter import NETWORKS, UNET_BLOCKS, block_values
from trainer.config.groups.objective import SNR_WEIGHTINGS, TIMESTEP_DISTRIBUTIONS
from trainer.config.groups.optimizer import OPTIMIZERS, SCHEDULES
from trainer.config.groups.output import FORMATS
from trainer.config.groups.run import PACES, PRESET_NAMES
from trainer.config.groups.training import PRECISIONS, QUANTISED, RECOMPUTE
from trainer.config.toml import read_toml, to_toml
from trainer.config.train_config import TrainConfig, config_from
from trainer.config.validation import format_number, is_text, problem_with, problems_in

__all__ = [
    "FORMATS",
    "NETWORKS",
    "OPTIMIZERS",
    "PACES",
    "PRECISIONS",
    "PRESET_NAMES",
    "QUANTISED",
    "RECOMPUTE",
    "SCHEDULES",
    "SNR_WEIGHTINGS",
    "TIMESTEP_DISTRIBUTIONS",
    "UNET_BLOCKS",
    "Bounds",
    "TrainConfig",
    "block_values",
    "coerced_values",
    "config_from",
    "format_number",
    "is_text",
    "item_types",
    "kind_of",
    "problem_with",
    "problems_in",
    "read_toml",
    "setting",
    "settings_table",
    "to_toml",
]
