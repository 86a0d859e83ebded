"""What each variant does on the same images.

In reading order:

    environment  on what a figure was measured
    inference    logits and latency
    statistics   how sure a figure is
    results      everything that a report shows
    variants     model files beside each other
"""
