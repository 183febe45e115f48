"""ONNX with explicit precisions: what is written, checked and read back.

    torch_onnx.py   a torch module to ONNX (needs torch)
    naming.py       names of layers and quantizers in a freshly exported graph
    precision.py    fp16 regions in an ONNX graph
    qdq.py          Q/DQ: a linter for what TensorRT parses, and the precision of every layer

``repo_builder.core.graphs`` says how layers are named.
"""
