"""The target TensorRT."""
