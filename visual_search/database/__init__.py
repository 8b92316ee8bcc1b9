"""Postgres: the schema, its migrations, connections, and the embedded server."""
