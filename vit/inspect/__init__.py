"""Look inside a model.

In reading order:

    summary    layers, shapes, parameters and multiply-adds
    attention  attention maps and their rollout
    judged     answers for images whose classes are known, and where they come from
    plots      curves, confusion, filters, attention and mistakes of a run, as figures
    page       all of them as files and one page
"""
