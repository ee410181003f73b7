"""Child processes of the page: sampling, planning, captioning and LoRA tools."""
