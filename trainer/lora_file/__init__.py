"""The `.safetensors` that leaves the house: names, metadata, hashes; saving, reading back, opening."""
