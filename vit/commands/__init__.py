"""The commands of `python -m vit`: each checks what can be known, and only then imports torch.

In reading order:

    train           train
    import_weights  import
    inspect_run     summary and plots
    main            the parser
"""
