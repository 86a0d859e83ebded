"""Distance of INT8 from float, and the kernels that ONNX Runtime runs.

- statistics.py: confidence intervals of a figure
- label_sets.py: several labels per image: label sets, mean average precision, F1
- drift.py: distance of a variant's logits from float on the same images
- per_layer.py: the same for each layer's output, and activations outside the ranges
- multiply_adds.py: multiply-adds of each product, for one image
- verify.py: kernels of the optimized graph
"""
