"""What each host was asked for, and how long it took.

By day, so that a report can speak of what is so now; of days long past nothing is kept.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE host_traffic (
        day date NOT NULL,
        -- As `images.host` has it.
        host text NOT NULL,
        requests bigint NOT NULL,
        -- Of these, those that brought no image.
        failed bigint NOT NULL,
        bytes bigint NOT NULL,
        seconds double precision NOT NULL,
        PRIMARY KEY (day, host)
    );
    """)
