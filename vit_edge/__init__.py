"""The command `vit-edge`, one word for all the others; there is nothing here to import."""
