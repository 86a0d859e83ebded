"""Training: from a recipe, a model and images to a checkpoint.

In reading order:

    recipe       how a model is trained, as plain data, and the options that set it
    augment      augmentation of whole batches
    optimizer    parameter groups, learning rate, moving average
    distributed  one process or several
    resume       state of an unfinished run
    evaluate     logits, loss and accuracy without training, and the best epoch
    label_sets   figures and thresholds of models with several labels per image
    fake_quantization  a plan's quantization in the forward pass
    loop         the loop and its loss: computes, writes no file
    session      the files and messages around one training
    probe        features of a frozen backbone, and a linear head fitted on them
    train        train() itself: ties loop, session and signals together
    examples     recipes of the examples that ship with the project
    setup        from the options of the command line to the arguments of train()
"""
