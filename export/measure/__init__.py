"""Measurement of each variant on the same images.

In reading order:

    inference         run the variants: outputs, top-1 and latency
    limits            one limit on one variant, decided by the interval of its figure
    field_statistics  statistics of the images, with which a device finds drift
    self_test         test images for each model file, with the answers of this machine
    simulator         files for an NPU in Qualcomm's simulator
"""
