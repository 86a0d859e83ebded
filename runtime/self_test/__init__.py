"""Self-test of a model file: images made by a recipe, and what the exporting machine answered for them.

In reading order:

    made_images  make the images, with integers alone, so that every language makes the same bytes
    document     the JSON document in the model file
    thresholds   limits on the distance from these answers
    answers      outputs of a session for these images, and their distance from others
    check        run the self-test on a device
    diagnose     name the fault where it fails
    command      options and output of vit-edge check
    __main__     python -m runtime.self_test
"""
