"""From a float model to measured ONNX files for a device.

In reading order:

    sources/      a checkpoint, imported weights or an ONNX model, as one canonical float graph
    graph/        the exact rewrites that lead to it
    images        which images calibrate, search and measure
    files         model files with metadata, written aside and renamed
    measure/      drift, latency and size of each variant
    report/       report.html and the table in the terminal
    options       options of an export, and the limits that follow from them
    layers        names of layers, which a plan must fit
    checks        limits that refuse an export
    quantization  calibrate, search a plan, or apply a given one
    pipeline      the whole export
    example       the embedded example
    command/      options and checks of python -m export
    __main__      python -m export
"""
