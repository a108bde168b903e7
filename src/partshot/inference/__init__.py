"""Inference without torch: the exported model, sliding windows, edge refinement, and the folder of predictions."""
