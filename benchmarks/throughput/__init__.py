"""vsearch against its own limit, and against what else does the same work.

`__main__.py` runs the rounds. Each contender is a file: `vsearch_job.py`, `inference_alone.py`,
`reference_loop.py`, `daft_job.py`, `ray_job.py`; `stages.py` measures the limit's parts;
`job.py` is what they are all given, `network.py` what they compute with, `photo_server.py` where
the photos come from. `figures.py` does the arithmetic, `report.py` and `plot.py` show it.
"""
