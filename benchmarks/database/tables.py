"""What the server does by itself at its own time, done at ours: sweeping, and learning."""

from pathlib import Path

from sqlalchemy import create_engine, text

from visual_search.database import embedded
from visual_search.database.connection import Database, quoted
from visual_search.images import ModelKey


def stop_autovacuum(database: Database, table: str) -> None:
    """From now on a table is swept and analyzed only when we say so."""
    with database.transaction() as connection:
        connection.execute(text(f"ALTER TABLE {quoted(table)} SET (autovacuum_enabled = off)"))


def sweep(url: str, table: str) -> None:
    """Remove old versions of rows; let the planner learn what is there now."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"VACUUM (ANALYZE) vsearch.{quoted(table)}"))
    engine.dispose()


def analyze(database: Database, table: str) -> None:
    """Let the planner learn what is in a table now."""
    with database.transaction() as connection:
        connection.execute(text(f"ANALYZE {quoted(table)}"))


def clear_statistics(database: Database, table: str) -> None:
    """Let the planner know nothing of a table, as before its first row."""
    with database.transaction() as connection:
        connection.execute(
            text("""
                SELECT pg_clear_attribute_stats('vsearch', :table, attname, false) FROM pg_stats
                WHERE schemaname = 'vsearch' AND tablename = :table;
                SELECT pg_clear_relation_stats('vsearch', :table)
            """),
            {"table": table},
        )


def take_statistics(database: Database, table: str, *, of: str) -> None:
    """Let the planner take what it knows of another table for a table's own."""
    with database.transaction() as connection:
        connection.execute(
            text("""
                SELECT pg_restore_attribute_stats(
                    'schemaname', 'vsearch', 'relname', CAST(:table AS text),
                    'attname', CAST(attname AS text), 'inherited', false,
                    'null_frac', null_frac, 'avg_width', avg_width, 'n_distinct', n_distinct,
                    'most_common_vals', CAST(most_common_vals AS text),
                    'most_common_freqs', most_common_freqs,
                    'histogram_bounds', CAST(histogram_bounds AS text),
                    'correlation', correlation)
                FROM pg_stats WHERE schemaname = 'vsearch' AND tablename = :of
            """),
            {"table": table, "of": of},
        )


def drop_model(database: Database, model_key: ModelKey) -> None:
    """Forget a model and its extractions."""
    with database.transaction() as connection:
        connection.execute(text(f"DROP TABLE extractions_{int(model_key)}"))
        connection.execute(
            text("""
                DELETE FROM shards WHERE model_key = :model_key;
                DELETE FROM leases WHERE model_key = :model_key;
                DELETE FROM runs WHERE model_key = :model_key;
                DELETE FROM models WHERE model_key = :model_key
            """),
            {"model_key": model_key},
        )


def url_of(home: Path) -> str:
    """How to reach the server of a home that is up."""
    with embedded.running(home, create=False) as url:
        return url.render_as_string(hide_password=False)
