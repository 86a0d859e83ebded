"""What only `python -m runtime` needs; an app that embeds the runtime loads none of it.

In reading order:

    output   result lines in a file that survives a crash
    report   progress and summary
    sorting  one folder for each label
"""
