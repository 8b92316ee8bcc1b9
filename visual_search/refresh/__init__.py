"""Vectors whose pictures may have changed at their URLs: which to check, and what came of it.

A vector counts all the while: its row stays `done`, under the lease of the worker that checks it,
until a newer vector takes its place. Every function is one step inside the caller's transaction.
"""

from visual_search.refresh.outdated import Sweep, claim_outdated, claim_outdated_along
from visual_search.refresh.passes import (
    Refresh,
    begin_refresh,
    count_outdated,
    finish_refresh,
    look_ahead,
    next_lease_end,
)
from visual_search.refresh.recording import (
    lock_replaced,
    postpone_checks,
    record_unchanged,
    record_unchecked,
    replace_vectors,
)

__all__ = [
    "Refresh",
    "Sweep",
    "begin_refresh",
    "claim_outdated",
    "claim_outdated_along",
    "count_outdated",
    "finish_refresh",
    "lock_replaced",
    "look_ahead",
    "next_lease_end",
    "postpone_checks",
    "record_unchanged",
    "record_unchecked",
    "replace_vectors",
]
