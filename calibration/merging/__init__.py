"""Token merging (ToMe, arXiv 2210.09461) as a planned approximation: fewer tokens, a little other logits.

In reading order:
    schedule.py: how many tokens each block merges, and how many are left; plain arithmetic.
    sites.py: the blocks of a canonical graph that can merge, and why a graph cannot.
    follow.py: what reads the tokens after a merge; refuses what needs all of them.
    match.py: the operators that pair similar tokens.
    write.py: a plan's merging written into the float graph.
    groups.py: which patches of an image ended in one token, to be shown.
    search.py: the most merging within a budget.
"""
