"""Functions on tensors and arrays, without file access and without modules that have weights."""
