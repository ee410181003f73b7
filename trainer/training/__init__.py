"""The parts of the recipe in `trainer/train.py`."""
