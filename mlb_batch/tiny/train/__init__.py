"""Training of the embedded models from nothing: `python -m mlb_batch.tiny.train video|paired|image`."""
