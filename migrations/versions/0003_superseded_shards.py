"""Shards that were merged into another one: small ones become few, and readers are not disturbed.

A shard that a merge writes has no images claimed for it, so no lease says that its writer lives.
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE shards
        -- Who writes a shard without a lease is taken for dead from then on.
        ADD COLUMN held_until timestamptz,
        -- The shard that takes, or was to take, this one's place.
        ADD COLUMN merged_into uuid,
        ADD COLUMN superseded_at timestamptz,
        DROP CONSTRAINT shards_state_check,
        ADD CONSTRAINT shards_state_check CHECK (
            state IN ('writing', 'committed', 'abandoned', 'discarded', 'superseded')),
        ADD CONSTRAINT shards_superseded_check CHECK (
            state <> 'superseded' OR (merged_into, superseded_at) IS NOT NULL);
    """)
