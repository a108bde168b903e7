"""Pyramid in, logits out: what is fitted to the few labeled images."""
