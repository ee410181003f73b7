"""New LoRA files made from existing ones: convert, merge, resize, extract, bake."""
