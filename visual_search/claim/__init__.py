"""Which images this worker may work on: seed, take, renew, rescue and give back leases.

Every function is one step inside the caller's short transaction.
"""

from visual_search.claim.due import (
    Place,
    Suspicion,
    claim_along,
    claim_images,
    find_addresses,
    look_up_by_key,
    release_paused,
)
from visual_search.claim.leases import (
    DEATHS_TO_FAIL,
    close_lease,
    lock_lease,
    open_lease,
    renew_leases,
    rescue_images,
    rescue_run,
)
from visual_search.claim.outlook import Outlook, count_pending, look_out
from visual_search.claim.seeding import by_progress, is_behind, seed_images

__all__ = [
    "DEATHS_TO_FAIL",
    "Outlook",
    "Place",
    "Suspicion",
    "by_progress",
    "claim_along",
    "claim_images",
    "close_lease",
    "count_pending",
    "find_addresses",
    "is_behind",
    "lock_lease",
    "look_out",
    "look_up_by_key",
    "open_lease",
    "release_paused",
    "renew_leases",
    "rescue_images",
    "rescue_run",
    "seed_images",
]
