"""ONNX graphs: edit one, find its linear layers and attention products, keep its weights out of memory.

- edit.py: read and change nodes, values and constants
- layers.py: the linear layers and the attention products of a graph
- memory.py: weights on disk while a model is in use, and sessions from a graph in memory
"""
