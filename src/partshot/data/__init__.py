"""Reading and writing of images and masks, shots (labeled images), augmentation."""
