"""Drift in the field: the images and answers on a device against those that the export measured.

Loaded with `monitor=True` alone. In reading order:

    measure   statistics of one image, and of one answer
    document  the same of the images that the export measured: a document in the model file
    drift     distance of two samples of a statistic, and the distance that chance makes
    report    findings in numbers and in a sentence
    monitor   the last images of a device, or a sample of a whole run
"""
