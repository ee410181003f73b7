"""Compatibility of LoRA files with other tools."""
