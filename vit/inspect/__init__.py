"""Look inside a model.

In reading order:

    summary    layers, shapes, parameters and multiply-adds
    attention  attention maps and their rollout
    plots      curves, confusion, filters, attention and mistakes of a run
"""
