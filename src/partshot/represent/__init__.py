"""Representations: frozen feature extractors that map images to a Pyramid. One per file."""
