"""Image generation with an adapter at several strengths."""
