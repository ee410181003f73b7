"""Impasto's trainer: from a folder of art to a LoRA file. `python -m trainer --help` shows the ways in."""
