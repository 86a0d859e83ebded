"""Token merging (ToMe, arXiv 2210.09461), an approximation that a plan can ask for: fewer tokens, less time.

- token_stream.py: the tokens of a canonical graph and the blocks that can merge them
- merge_schedule.py: how many tokens each block merges; the most merging within a budget
- match.py: the operators that pair similar tokens, and the pairs of one image
- write_merging.py: write the merging of a plan into the float graph
"""
