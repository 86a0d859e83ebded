"""Modules that only `python -m runtime` needs; an app that embeds the runtime loads none of it.

In reading order:

    options     options of the command line, and the combinations that are refused
    inputs      images named on the command line
    labels      the command: one result line per image
    output      result lines
    whole_lines what an interrupted run has left of them
    resume      a file of them that survives a crash
    report      progress and summary
    sorting     one folder for each label
    embeddings  the command with --embeddings: an array with one row per image
    columns     columns in, columns out: what an engine for clusters calls
    cluster     the command with --engine ray
"""
