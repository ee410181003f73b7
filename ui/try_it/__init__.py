"""Pictures that an artist asks of a LoRA, and strips of strengths."""
