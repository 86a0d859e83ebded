"""The Vision Transformer in PyTorch: model, training, checkpoints."""
