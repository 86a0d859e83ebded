"""A float ONNX model of another exporter: read, described, brought into canonical form. No torch here.

In reading order:

    spec          description of what the model takes
    file          the file, read with care
    passes/       rewrites for graphs of other exporters
    canonicalize  the order of all rewrites
    folder        the folder of optimum or transformers.js: model, preprocessing and labels
    scores        outputs that are no logits
    load          the whole door
"""
