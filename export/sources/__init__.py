"""Sources of an export, each in one form: the canonical float graph, and the model that it must equal.

In reading order:

    source            the form
    from_torch        a checkpoint, or weights of another project
    onnx_description  preprocessing and labels of an ONNX model of another exporter
    scores            outputs of such a model that are no logits
    onnx_file         such a model, read with care and brought into canonical form; no torch
    read_source       the source that a command line names
"""
