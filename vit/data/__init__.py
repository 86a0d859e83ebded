"""Images to train on: found, split and put into batches.

In reading order:

    idx       the file format of MNIST
    folders   which folders are splits and which are classes
    public    names that may leave this machine
    images    find images in folders, IDX files and examples; split them
    labels    the classes of images as those of a model
    training  the three parts that training needs
    memory    how much may be kept
    batches   decoded images on their way into batches
"""
