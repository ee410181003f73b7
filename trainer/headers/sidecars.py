"""Names of the JSON files beside a LoRA file, written by trainer/workers/lora_tools.py and read by the page.

<folder of a file that was made or imported>/
  entry.json     {"origin": "merge", "of": ["a", "b"], "takes": ["ComfyUI 0.33", ...], "made": 1795500000.0,
                  "problem": ""}
<folder of a training>/
  choice.json    {"step": 200, "strength": 0.8, "file": "ink-200.safetensors", "takes": [...],
                  "made": 1795500000.0}

`takes` lists the tools that read the whole file; `made` counts seconds since 1970.
"""

from __future__ import annotations

ENTRY = "entry.json"
CHOICE = "choice.json"
TOOLS = ("merge", "resize", "convert", "check", "choose")
