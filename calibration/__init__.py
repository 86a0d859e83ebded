"""Static INT8 quantization: float ONNX in, INT8 ONNX out. No torch here.

In reading order:

    graph     small verbs on an ONNX graph
    serialize a model handed to ONNX Runtime, whatever its size
    sites     where a canonical graph can be quantized
    observe   statistics of activations over the calibration images
    weights   int8 weights, one scale per output channel
    ranges    rules for the range of a tensor
    trial     effect of a choice on the output of a layer
    balance   scales moved from activations into weights
    split     a few hidden channels of an MLP kept in float
    plan      what was decided, as plain data (plan_fields: what each of its fields must hold)
    decide    from statistics to a plan
    pairs     quantize and dequantize pairs of one layer
    merging/  token merging, an approximation that a plan can ask for
    write     the plan into the graph
    measure/  distance from float, and the kernels that ONNX Runtime runs
    quantize  the whole in one call
    search    the fastest plan within a budget
"""
