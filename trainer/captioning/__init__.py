"""Captions written by a model: sentences by BLIP and Florence-2, tags by WD taggers.

options.py   what may be chosen, each option once                                        plain: no torch
models.py    which captioning models there are, and which kind a folder holds            plain
job.py       a captioning as a job directory: made, started, followed, stopped           plain
work.py      the process that works on a job
folder.py    the work: picture after picture, a `.txt` beside each
describe.py  sentences, by transformers
tag.py       tags, by onnxruntime
fetch.py     a model downloaded from the hub, when asked

The page makes a job with `job.create`, starts `python -m trainer caption-job DIR` and folds its
events with `job.fold`.
"""
