"""The target ONNX Runtime."""
