"""Results for people.

In reading order:

    terminal       the table of the command line
    charts         charts as inline SVG
    figures        figures as text
    usage          lines that use the exported file
    preprocessing  preprocessing in words, and one image before and after it
    classes        accuracy of each class
    confusion      which classes are taken for which
    thumbnails     the images whose label changed
    embeddings     drift of embeddings
    merging        dense and merged INT8, and which patches merged
    calibration    share of clipped activations
    html           report.html, from the templates in parts/ and vit.page
"""
