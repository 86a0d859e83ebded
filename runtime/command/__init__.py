"""Shared parts of the command lines.

In reading order:

    parser      options as the fields of a dataclass, and the parser that is made from them
    line        errors as one line and an exit code
    progress    progress of a long step, on a terminal and in a log
    file_kinds  kinds of files by their first bytes
    locking     one writer at a time for a file or a folder
"""
