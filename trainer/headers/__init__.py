"""What a file is, read from its header alone: base models, LoRAs and captioning models. No torch."""
