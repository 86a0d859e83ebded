"""Measurement of each variant on the same images.

In reading order:

    environment  on what a figure was measured
    inference    logits and latency
    merging      dense and merged INT8 beside each other
    reliability  whether scores mean what they say
    embeddings   drift of embeddings in their own terms
    evidence     doubts about the evidence of an export
    limits       one limit on one variant, decided by the interval of its figure
    verdict      limits that were set: met, missed, or not to be judged
    classes      accuracy of each class
    results      everything that a report shows
    model_file   a model before it is measured
    publish      the file of one variant, with its measurements as metadata
    variants     model files beside each other
"""
