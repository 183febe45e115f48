"""Fake-quantized fine-tuning of an fp32 graph, in torch: what is trained is what is placed.

    graph.py      the graph as a torch module: weights and biases of layers are its parameters
    operators.py  its operators in torch (moving.py: what moves and shapes, pooling.py: what moves a window)
    fake.py       fake quantizers on what a placement quantizes, and the ranges that they end with
    rounding.py   whose fake quantizers those are: a back end's

The training itself is ``models/finetuning.py``; ``flows/build/finetuning.py`` hands values on.
"""
