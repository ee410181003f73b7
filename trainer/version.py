"""The version of Impasto: packaging reads it here; every run, checkpoint, LoRA header and PNG records it."""

__version__ = "0.2.0.dev0"
SOFTWARE = f"Impasto {__version__}"
