"""Segmentation heads: Pyramid in, logits out. They are fitted to the few labeled images."""
