"""Results for people.

In reading order:

    conclusion     the one thing to do next
    terminal       the table of the command line
    charts         charts as inline SVG
    figures        figures as text
    usage          lines that use the exported file
    preprocessing  preprocessing in words, and one image before and after it
    classes        accuracy of each class
    confusion      which classes are taken for which
    thumbnails     images whose label changed, and images that float32 gets wrong
    embeddings     drift of embeddings
    precision      layers in INT8 and in float32, in one sentence
    merging        dense and merged INT8, and which patches merged
    calibration    share of clipped activations
    html           report.html, from the templates in parts/ and vit.page
"""
