"""The database at ten million images: what each step costs, whole commands included.

    python -m benchmarks.database --home FOLDER [--images N]

`FOLDER` keeps the catalogue, which takes minutes to make, for the next call.
"""
