"""From image files to the pixels that a model takes.

In reading order:

    preprocess     from an image to the input of a model: the steps that training and runtime share
    find_images    images in folders, and the files that are skipped
    decode         an image from any source as upright RGB
    formats        the formats that are read, with a check for each; larger ones in png, jpeg, tiff, avif
    other_formats  packages that add formats, and messages for files that Pillow does not read
    resize         two passes, columns first, with every version of Pillow
"""
