"""A model file: read with care before ONNX Runtime sees it.

In reading order:

    targets    form of INT8 weights, and CPUs on which they are exact
    onnx_file  what an .onnx file says about itself, without the onnx package
    metadata   the JSON document inside
    digest     the SHA-256 at its end, by which damage is found
    artifact   the file, checked
"""
