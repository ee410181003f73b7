"""The studio: a page that starts trainings, follows them and shows what they made. It never loads torch."""
