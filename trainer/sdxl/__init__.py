"""SDXL: a base model opened offline, prompts to conditioning, images to latents and back."""
