"""The commands of `python -m vit`: each makes all checks that need no weights, then imports torch.

In reading order:

    train           train
    import_options  options of import
    import_weights  import
    import_classes  its classes in words and by example
    inspect_run     summary and plots
    main            the parser
"""
