"""Identification of files by their headers: base models, LoRAs and captioning models. No torch."""
