"""What every page is made of: the document and its style, wording, tables."""
