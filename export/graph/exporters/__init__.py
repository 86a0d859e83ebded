"""Rewrites in front of the canonical passes, for graphs of other exporters.

In reading order:

    freeze      computed shapes become constants
    simplify    operators that do nothing, or the same as a plainer one
    fuse        GELU and LayerNorm as one node each
    selections  the parts of a value that Split, Slice and Gather take
    qkv         one linear layer for query, key and value becomes three
    places      where the batch lies in each value
    batch_rules, batch_layout  how operators move it, as tables of rules
    batch       one fixed batch becomes any batch
    raw_pixels  normalization in front of the model
"""
