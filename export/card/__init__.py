"""Papers for those who publish or audit an exported model; each figure in them is one of report.json.

In reading order:

    command     command line `vit-edge card FOLDER`: check the files, write both papers
    facts       what both say, read from report.json once
    model_card  README.md with the front matter of the Hugging Face hub
    components  model.cdx.json: models, data and packages as CycloneDX 1.6, an ML-BOM
"""
