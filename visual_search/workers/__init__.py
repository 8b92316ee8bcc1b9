"""One `vsearch extract` in several workers, each of which runs the whole pipeline.

`supervisor.py` has them started, kept alive (`keeper.py`) and told of as one (`results.py`).
`placement.py` says how many there are and what each may take, `task.py` what each is told,
`work.py` what it does then, and `report.py` what it answers. A worker is a child process of this
machine (`process.py`) or an actor on a Ray cluster (`actor.py`, `ray_cluster.py`). Who does which
image, they settle through the database, as workers that know nothing of each other do.
"""
