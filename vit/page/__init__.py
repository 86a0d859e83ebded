"""Parts of the HTML pages: the export's report and the plots of a run look the same.

In reading order:

    template   pages from templates, and the words that a page explains at its end
    image_uri  images as data URIs
    confusion  which classes are taken for which
"""
