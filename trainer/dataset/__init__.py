"""Pictures and captions: a folder is scanned into a manifest, and each picture is assigned to a bucket. No
torch.
"""
