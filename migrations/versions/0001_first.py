"""The first schema.

Forward only. Statements are unqualified: the caller's search path names the schema.
"""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
    -- One row: which catalogue this is. Folders of shards carry the same id.
    CREATE TABLE catalogue (
        catalogue_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        created_at timestamptz NOT NULL DEFAULT now(),
        only_row boolean NOT NULL UNIQUE DEFAULT true CHECK (only_row)
    );
    INSERT INTO catalogue DEFAULT VALUES;

    CREATE TABLE products (
        product_id text PRIMARY KEY,
        attributes jsonb NOT NULL DEFAULT '{}',
        updated_at timestamptz NOT NULL DEFAULT now()
    );

    CREATE TABLE images (
        image_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        image_key text NOT NULL,
        -- First 16 bytes of sha256(image_key): an index over 8 kB keys would not fit a page.
        key_hash bytea NOT NULL CHECK (length(key_hash) = 16),
        url text NOT NULL CHECK (length(url) BETWEEN 1 AND 8192),
        host text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE UNIQUE INDEX images_key_hash ON images (key_hash);

    -- No foreign keys: the importer keeps both sides, and checks cost half the import's rate.
    CREATE TABLE product_images (
        product_id text NOT NULL,
        image_id bigint NOT NULL,
        PRIMARY KEY (product_id, image_id)
    );
    CREATE INDEX product_images_image ON product_images (image_id);

    CREATE TABLE models (
        model_key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL,
        model_id text NOT NULL UNIQUE,
        active boolean NOT NULL,
        dim integer NOT NULL CHECK (dim > 0),
        spec jsonb NOT NULL,
        weights_sha256 text,
        -- Images up to this id have a row in this model's extractions.
        seeded_to bigint NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE UNIQUE INDEX models_one_active ON models (name) WHERE active;

    CREATE TABLE runs (
        run_id uuid PRIMARY KEY,
        model_key integer NOT NULL REFERENCES models,
        host text NOT NULL,
        pid integer NOT NULL,
        started_at timestamptz NOT NULL DEFAULT now(),
        heartbeat_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz,
        outcome text CHECK (outcome IN ('completed', 'stopped', 'failed')),
        message text,
        claimed bigint NOT NULL DEFAULT 0,
        done bigint NOT NULL DEFAULT 0,
        failed bigint NOT NULL DEFAULT 0,
        images_per_second double precision,
        core_seconds_per_stage jsonb NOT NULL DEFAULT '{}'
    );
    CREATE INDEX runs_latest ON runs (model_key, started_at DESC);

    CREATE TABLE shards (
        shard_id uuid PRIMARY KEY,
        model_key integer NOT NULL REFERENCES models,
        uri text NOT NULL,
        rows integer CHECK (rows > 0),
        -- Rows whose image was removed from the catalogue after the commit.
        removed_rows integer NOT NULL DEFAULT 0,
        bytes bigint,
        sha256 text,
        run_id uuid NOT NULL,
        state text NOT NULL CHECK (state IN ('writing', 'committed', 'abandoned', 'discarded')),
        created_at timestamptz NOT NULL DEFAULT now(),
        CHECK (state <> 'committed' OR (rows, bytes, sha256) IS NOT NULL)
    );
    CREATE INDEX shards_model ON shards (model_key, created_at) WHERE state = 'committed';
    CREATE INDEX shards_writing ON shards (created_at) WHERE state = 'writing';

    CREATE TABLE leases (
        lease_token uuid PRIMARY KEY,
        model_key integer NOT NULL REFERENCES models,
        run_id uuid NOT NULL,
        expires_at timestamptz NOT NULL
    );

    CREATE TABLE hosts (
        host text PRIMARY KEY,
        retry_at timestamptz NOT NULL
    );

    -- The history: one row per model and image. No foreign key to images: it halves the seeding
    -- rate, and catalog.py removes both sides in one transaction.
    CREATE TABLE extractions (
        model_key integer NOT NULL,
        image_id bigint NOT NULL,
        status text NOT NULL DEFAULT 'pending'
            CHECK (status IN ('pending', 'claimed', 'done', 'failed')),
        lease_token uuid,
        attempts smallint NOT NULL DEFAULT 0,
        crashes smallint NOT NULL DEFAULT 0,
        next_attempt_at timestamptz NOT NULL DEFAULT now(),
        failure_reason text,
        http_status smallint,
        failure_detail text,
        content_sha256 bytea,
        shard_id uuid,
        row_in_shard integer,
        finished_at timestamptz,
        PRIMARY KEY (model_key, image_id),
        CHECK ((status = 'claimed') = (lease_token IS NOT NULL)),
        CHECK ((status = 'done') = (shard_id IS NOT NULL)),
        CHECK (status <> 'failed' OR failure_reason IS NOT NULL)
    ) PARTITION BY LIST (model_key);
    CREATE INDEX extractions_pending ON extractions (model_key, next_attempt_at, image_id)
        WHERE status = 'pending';
    CREATE INDEX extractions_claimed ON extractions (lease_token) WHERE status = 'claimed';
    CREATE INDEX extractions_failed ON extractions (model_key, failure_reason)
        WHERE status = 'failed';

    CREATE VIEW feature_extraction_history AS
    SELECT i.url AS image_url,
           m.name AS model_name,
           m.model_id,
           (e.finished_at AT TIME ZONE 'UTC')::date AS snapshot_date
    FROM extractions e
    JOIN models m USING (model_key)
    JOIN images i USING (image_id)
    WHERE e.status = 'done';
    """)
