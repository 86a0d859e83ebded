"""Read a model file and check it before ONNX Runtime loads it.

In reading order:

    artifact   the file, checked
    metadata   the JSON document in it
    onnx_file  outline of an .onnx file, without the onnx package
    integrity  the SHA-256 at its end, and the second file of a model with large weights
    pointer    which model of a folder of vit-edge install is the current one
    targets    forms of INT8 weights, and the CPUs on which they are exact
"""
