"""From a file on a disk to the pixels that a model takes.

In reading order:

    files       find images in folders
    openers     more formats, for the command lines
    left_out    files that a walk passed by, counted
    modes       every mode of Pillow as RGB
    refusals    words for what Pillow does not open
    decode      an image of any kind as upright RGB
    resize      two passes, columns first, with every version of Pillow
    preprocess  the one road from an image to the input of a model
"""
