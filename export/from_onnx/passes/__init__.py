"""Rewrites in front of the canonical passes, for graphs of other exporters.

In reading order:

    freeze      computed shapes become constants
    simplify    operators that do nothing, or the same as a plainer one
    fuse        GELU and LayerNorm as one node each
    qkv         one linear layer for query, key and value becomes three
    batch       one fixed batch becomes any batch
    raw_pixels  normalization in front of the model
"""
