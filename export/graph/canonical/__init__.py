"""Exact rewrites of any graph that reads raw pixels, into the form that quantizes well.

`export/graph/canonicalize.py` runs them and has their order. In reading order:

- layout.py: constant shapes, no transposes that cancel, tokens as rows of a matrix
- pixels.py: raw uint8 pixels in, the normalization inside the weights, the patch embedding as one Gemm
- class_token.py: the last block computes only what the class token needs
- linears.py: names after modules, one Gemm per linear layer, scales folded into weights
- token_major.py: rows ordered token by token, so that attention reads its heads without moving them
"""
