"""A run directory and its protocol: settings, events, commands, the job queue. No torch."""
