"""Distance of INT8 from float, and what ONNX Runtime really runs.

In reading order:

    statistics  how sure a figure is
    drift       distance of a variant from float on the same images
    layers      the same layer by layer
    clipping    activations outside the ranges
    verify      kernels of the optimized graph
"""
