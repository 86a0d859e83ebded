"""From a float model to measured ONNX files for a device.

In reading order:

    canonical     the canonical float graph and its names
    from_torch    a checkpoint to the canonical graph
    from_onnx/    an ONNX model of another exporter to the canonical graph
    passes/       the exact rewrites that every model takes
    embedding     the embedding as an output of the graph
    source        either of them as one thing
    images        which images calibrate, search and measure
    float16       a float16 copy for GPUs
    files         model files with metadata, written aside and renamed
    measure/      drift, latency and size of each variant
    report/       report.html and the table in the terminal
    options       options of an export, one field each
    check_options checks of the options, as more is known: options, source, graph
    check_results checks of the files: equal to the source, within the limits
    quantization  calibrate, search a plan, or apply a given one
    pipeline      the whole export
    command_line  parser of python -m export, and the order of its work
    __main__      python -m export
"""
