"""SDXL: a base model opened offline, prompts to conditioning, pictures to latents and back."""
