"""The Vision Transformer in PyTorch: model, training, checkpoints.

In reading order:

    config       shape of a model, and the named sizes of the literature
    normalize    pixels to normalized channels, the first step of the model
    head         last norm and head of the model
    model        the paper on one page: patch embedding, attention, MLP, block, ViT
    schedule     numbers of tokens that the blocks merge
    merging      the same model on fewer tokens, for training with token merging
    adapt        other classes and another resolution for a trained model
    tensors      safetensors files, read and written whole
    document     the header of a checkpoint, read without torch
    run_folder   whether a run is begun, replaced or gone on with
    checkpoint   one file with weights, config, preprocessing, labels and history
    data/        images to train on, and their batches
    pretrained/  weights of other projects
    training/    from a recipe to a checkpoint
    inspect/     summary, attention maps and plots of a model
    page/        parts of the HTML pages, for plots and for the export's report
    commands/    options, checks and parser of python -m vit
    __main__     python -m vit train | import | summary | plots
"""
