"""repo-builder: from a trained model to a measured NVIDIA Triton deployment."""

__version__ = "0.1.0"
