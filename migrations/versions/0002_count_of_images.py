"""How many images there are, kept by those who add and remove them.

Counting ten million takes a second, and `status` and each run ask.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("""
    -- Nobody adds or removes any between the count and the first who keeps it.
    LOCK TABLE images IN SHARE ROW EXCLUSIVE MODE;
    ALTER TABLE catalogue ADD COLUMN images bigint NOT NULL DEFAULT 0;
    UPDATE catalogue SET images = (SELECT count(*) FROM images);
    """)
