"""Label on a cluster: --engine ray of `python -m runtime`.

In reading order:

    sources, reading  images in folders, stores and lists; their contents, a few ahead
    parts             an output that many processes write at once; its bytes are in part_formats
    chunks            the work in pieces, and what happens to each; knows no engine
    ray_cluster       a cluster to connect to, or started on this machine
    ray_engine        the work, by Ray Data; these two alone import Ray
    ray_command       the command
"""
