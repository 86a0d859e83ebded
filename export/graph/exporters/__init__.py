"""Rewrites for graphs of other exporters, before the canonical ones.

`export/graph/canonicalize.py` runs them and has their order. In reading order:

- freeze.py: one fixed batch, computed shapes become constants
- simplify.py: operators that do nothing, or the same as a plainer one
- fuse.py: GELU and LayerNorm as one node each
- qkv.py: one linear layer for query, key and value becomes three
- batch_rules.py: where the batch axis goes in operators that compute, as a table of rules
- batch.py: the same for operators that move values; the fixed batch becomes any batch
"""
