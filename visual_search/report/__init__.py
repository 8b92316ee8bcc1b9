"""Self-contained HTML pages: `showcase` shows what a model's vectors find, `overview` the work.

Both are made of what `page` and `plots` have.
"""
