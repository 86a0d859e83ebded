"""Results for people.

In reading order:

    terminal    the table of the command line
    charts      charts as inline SVG
    figures     figures as text
    confusion   which classes are taken for which
    thumbnails  the images whose label changed
    merging     dense and merged INT8, and which patches merged
    html        report.html
"""
