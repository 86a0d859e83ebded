"""Graphs of ONNX models: exact rewrites, and what they need.

- float_model.py: the canonical form of every source: its names, and the embedding as an output
- canonicalize.py: the face, `canonicalize(model)`, and the order of all rewrites
- canonical/: exact rewrites of any model
- exporters/: what other exporters write, turned into the same form before
- skipped.py: why a rewrite left a layer alone
- float16.py: float16 in place of float32
"""
