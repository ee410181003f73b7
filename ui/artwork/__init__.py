"""A project: its pictures on disk, how they come in, what the doctor finds, and how the Artwork tab shows it."""
