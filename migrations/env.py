"""Alembic's entry: runs the migrations on the connection that `database.migrate` opened."""

from alembic import context
from sqlalchemy import text

from visual_search.database.connection import quoted

connection = context.config.attributes["connection"]
schema = context.config.attributes["schema"]

connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}"))
context.configure(connection=connection, version_table_schema=schema)
context.run_migrations()
