"""What leaves the toolkit: the exact integer reference, packed checkpoints, ONNX."""
