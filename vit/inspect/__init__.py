"""Look inside a model.

In reading order:

    summary      layers, shapes, parameters and multiply-adds
    predictions  predictions for images whose classes are known, attention maps and their rollout
    plots        curves, confusion, filters, attention and mistakes of a run, as figures
    page         all plots as files and one page
"""
