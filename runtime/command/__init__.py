"""Shared parts of the command lines.

In reading order:

    line      errors as one line and an exit code, types of arguments
    progress  what a long step is doing, on a terminal and in a log
"""
