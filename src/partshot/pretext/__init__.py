"""Pretraining of representations: one training objective per file."""
