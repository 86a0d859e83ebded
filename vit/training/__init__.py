"""Training: from a recipe, a model and images to a checkpoint.

In reading order:

    recipe       how a model is trained, as plain data, and the options that set it
    augment      augmentation of whole batches
    loss         cross-entropy on smoothed, mixed, weighted targets, and a teacher
    optimizer    parameter groups, learning rate, moving average
    scalars      metrics for TensorBoard
    distributed  one process or several
    resume       state of an unfinished run
    evaluate     logits without training, and the best epoch
    loop         the loop: computes, writes no file
    probe        features of a frozen backbone, and a linear head on them
    session      the files and messages around one loop
    train        train() itself: ties loop, session and signals together
    examples     recipes of the examples that ship with the project
    setup        from the options of the command line to what train() takes
"""
