"""Captions written by a model: sentences by BLIP, BLIP-2 and Florence-2, tags by WD taggers.

folder.py      captions all pictures of a folder, a caption file beside each
sentences.py   sentences, with transformers
tags.py        tags, with onnxruntime
fetch.py       downloads a model from the Hugging Face hub when the user requests it

Elsewhere, without torch: trainer/captioning_config.py (options), trainer/headers/captioner.py (kinds of
models) and trainer/runs/captioning_job.py (job directory, through which the page starts, observes and stops a
captioning).
"""
