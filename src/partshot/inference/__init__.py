"""Running exported models without torch: the ONNX model, windows over large images, and the folder of predictions."""
