"""Modules that only `python -m runtime` needs; an app that embeds the runtime loads none of it.

In reading order:

    options          options of the command line, and the combinations that are refused
    inputs           images named on the command line
    tally            counts, the model (--verbose), progress and summary
    output           result lines in a file that survives a crash
    sorting          one folder per label (--sort-into)
    keep_unsure      the images to label next (--keep-unsure)
    field_report     drift against the export (--monitor)
    label_images     the command: one result line per image
    embed_images     the command with --embeddings: an array with one row per image
    label_columns    columns in, columns out: what an engine for clusters calls
    cluster_sources  images in folders, stores and lists, and their contents
    cluster_output   an output in parts that many processes write at once
    cluster_chunks   the work of a cluster in pieces; knows no engine
    ray_engine       the command with --engine ray
"""
