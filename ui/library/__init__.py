"""Finished LoRAs: looked up, labelled, made into others and shared."""
