"""Self-test of a model file: images made by a recipe, and what the exporting machine answered for them.

In reading order:

    made_images  make the images, with integers alone, so that every language makes the same bytes
    document     the JSON document in the model file
"""
