"""Trainings: what is told before, how they are started and followed, and what is said of them."""
