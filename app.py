"""Serves the studio: run `python app.py` and open the address that it prints. `--help` lists the options."""

import sys

from ui.launch import studio

if __name__ == "__main__":
    sys.exit(studio(sys.argv[1:], program="python app.py"))
