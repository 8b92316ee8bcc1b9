"""The database at ten million images: what each step costs, whole commands included.

    python -m benchmarks.database [--images N] [--home FOLDER] [--only PART …]

The folder keeps the catalogue, which takes minutes and 15 GB to make, for the next call; beside it
lie `figures.json` and the plot `cost.svg`.
"""
