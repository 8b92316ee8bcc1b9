"""What a vector's picture was when it was fetched, to ask later whether it changed.

A done row may be claimed, too, by a worker that checks it; it counts meanwhile.
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE extractions
        ADD COLUMN etag text,
        ADD COLUMN last_modified timestamptz,
        -- Of the URL that gave them, redirects followed.
        ADD COLUMN validators_url bytea,
        -- When the vector was last found to be up to date, if ever since it was made.
        ADD COLUMN checked_at timestamptz,
        DROP CONSTRAINT extractions_check,
        ADD CONSTRAINT extractions_claimed_check
            CHECK (status <> 'claimed' OR lease_token IS NOT NULL),
        ADD CONSTRAINT extractions_lease_check
            CHECK (lease_token IS NULL OR status IN ('claimed', 'done'));
    CREATE INDEX extractions_being_checked ON extractions (lease_token)
        WHERE status = 'done' AND lease_token IS NOT NULL;

    -- Leases under which vectors are checked: who embeds new images does not wait for them.
    ALTER TABLE leases ADD COLUMN checking boolean NOT NULL DEFAULT false;

    -- When the refresh began that is not complete yet; the next one goes on with it.
    ALTER TABLE models ADD COLUMN refresh_since timestamptz;
    """)
