"""The words beside the pictures: changed by hand, many at once, or by a model."""
