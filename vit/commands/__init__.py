"""The commands of `python -m vit`: each checks what can be known, and only then imports torch.

In reading order:

    bring  import
    train  train
    look   summary and plots
    main   the parser
"""
