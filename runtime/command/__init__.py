"""Shared parts of the command lines.

In reading order:

    line      errors as one line and an exit code, types of arguments
    progress  what a long step is doing, on a terminal and in a log
    kinds     kinds of files by their first bytes
    locking   one writer at a time for a file or a folder
"""
