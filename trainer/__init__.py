"""Impasto's trainer: a folder of pictures becomes a LoRA file.

`python -m trainer --help` lists the commands.
"""

# Packaging reads the version here; every run, checkpoint, LoRA header and PNG records it.
__version__ = "0.2.0.dev0"
SOFTWARE = f"Impasto {__version__}"
