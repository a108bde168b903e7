"""Network architectures, without training or inference code."""
