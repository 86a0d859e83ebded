"""Sign a model file, install it on a device, go back to the one before: a folder with one pointer file.

In reading order:

    signature  sign and verify: Ed25519 over an in-toto statement in a DSSE envelope
    folder     numbered models, the pointer to the current one, the journal
    install    copy aside, check, test on this device, switch
    command    options and output of vit-edge sign, verify, install, rollback, status
    __main__   python -m runtime.update
"""
