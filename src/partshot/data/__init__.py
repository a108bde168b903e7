"""Images, masks, shots, and their augmentation: everything that comes off a disk or is drawn."""
