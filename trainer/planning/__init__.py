"""Memory and time that a training will take, and the options that make it fit."""
