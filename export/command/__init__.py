"""The command line of `python -m export`: options are checked before torch is imported, where possible.

In reading order:

    arguments  arguments and options
    checks     what can be known of the options without weights
    doors      sources of a model
    run        the work
    main       the parser
"""
