"""The data layer of the page: projects, captions, settings, runs and LoRAs on disk. No gradio."""
