"""Pure functions on tensors and counts: no files, no modules with weights."""
