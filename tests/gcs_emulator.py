"""A stand-in for Google Cloud Storage, run as a program of its own; it prints its port.

Pyarrow holds the interpreter while it reads an object, so a server in the same process would never
get to answer.
"""

import threading
from functools import partial
from http.server import ThreadingHTTPServer
from sys import stdin

from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from tests.object_store import BUCKET


def main() -> None:
    """Serve until standard input ends."""
    storage = Storage(use_memory_fs=True)
    storage.create_bucket(BUCKET, {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    stdin.read()


if __name__ == "__main__":
    main()
