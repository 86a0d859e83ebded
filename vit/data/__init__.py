"""Images to train on: found, split and put into batches.

In reading order:

    idx              the file format of MNIST
    folders          which folders are splits and which are classes
    tables           tables of images with several labels each
    public           names that may leave this machine
    datasets         images in folders, IDX files and examples; their splits and the classes of a model
    training_images  the three parts that training needs, and images that two of them share
    batches          decoded images in batches, kept in memory when they fit
"""
