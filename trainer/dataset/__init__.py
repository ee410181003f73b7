"""Pictures and captions: a folder is scanned into a manifest; each picture gets a bucket."""
