"""What a model is: its spec and identity, its weights, its network.

`resolve` makes a spec of a name without importing torch; `weights` finds or downloads the file;
`loading` makes the network; `registry` keeps what has run on a catalogue; `inventory` lists it all.
"""

from visual_search.models.tables import built_ins, find_table, resolve, resolve_id

__all__ = ["built_ins", "find_table", "resolve", "resolve_id"]
