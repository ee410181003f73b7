"""HTML fragments and form values of the page, a file for each panel. No gradio."""
