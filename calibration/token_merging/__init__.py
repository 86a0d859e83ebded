"""Token merging (ToMe, arXiv 2210.09461) as a planned approximation: fewer tokens, a little other logits.

In reading order:

    schedule  how many tokens each block merges, and how many are left; plain arithmetic
    sites     the blocks of a canonical graph that can merge, and why a graph cannot
    follow    what reads the tokens after a merge; refuses what needs all of them
    match     the operators that pair similar tokens
    write     the merging of a plan in the float graph
    groups    which patches of an image ended in one token, to be shown
    search    the most merging within a budget
"""
