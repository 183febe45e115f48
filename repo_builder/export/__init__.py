"""ONNX with explicit precisions: what is written, checked and read back.

    torch_onnx.py   a torch module to ONNX (needs torch)
    precision.py    fp16 regions in an ONNX graph
    qdq.py          Q/DQ: a linter for what TensorRT parses, and the precision of every layer

How layers are named. In every graph that this project writes, the node that computes a layer bears the layer's own
qualified name, as in ``feature_layers.0`` for the Conv of that module; where a module runs more than once, later nodes
are ``feature_layers.0#2`` and so on. TensorRT's inspector shows node names, so nothing else has to survive.
``qdq.layer_of`` is the way back. In a graph from elsewhere a layer's name is its node's name.
"""
