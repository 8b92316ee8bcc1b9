"""Parquet shards: write them, read them, keep one catalogue's apart from another's."""

from visual_search.shard.output import (
    MARKER,
    ShardFile,
    check_owner,
    list_files,
    list_unfinished,
    prepare_output,
)
from visual_search.shard.reading import find_damage, read_vectors, read_verified
from visual_search.shard.writer import ShardWriter

__all__ = [
    "MARKER",
    "ShardFile",
    "ShardWriter",
    "check_owner",
    "find_damage",
    "list_files",
    "list_unfinished",
    "prepare_output",
    "read_vectors",
    "read_verified",
]
