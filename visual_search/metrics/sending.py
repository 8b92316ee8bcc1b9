"""To where Prometheus finds it: files for node_exporter, and a pushgateway."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog
from prometheus_client import push_to_gateway, write_to_textfile
from prometheus_client.exposition import basic_auth_handler, default_handler

from visual_search.metrics.families import Families

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# With the thread's end: no gateway, however slow, holds a run up for longer than `_LAST_S`.
_PUSH_TIMEOUT_S: Final = 2.0
_LAST_S: Final = 3.0


class Textfiles:
    """A file for each model and worker, and one for each model's success."""

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder = folder
        self._worker = worker
        self.place = str(folder)

    def send_run(self, model: str, families: Families) -> None:
        """Replace the file, which is whole at every moment."""
        write_to_textfile(str(self._folder / f"vsearch_{model}_{self._worker}.prom"), families)

    def send_success(self, model: str, families: Families) -> None:
        """Likewise."""
        write_to_textfile(str(self._folder / f"vsearch_{model}_success.prom"), families)


class Gateway:
    """A group for each model and worker, and one for each model's success."""

    def __init__(self, url: str, *, job: str, instance: str, worker: int) -> None:
        """Nothing is sent yet.

        Args:
            url: Of the gateway, with credentials if it asks for any.
            job: Of all groups.
            instance: This machine.
            worker: This process.
        """
        parts = urlsplit(url)
        credentials, _, address = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        self.place = urlunsplit((parts.scheme, address, parts.path, "", ""))
        self._worker = {"instance": instance, "worker": str(worker)}
        self._push = partial(
            push_to_gateway,
            self.place,
            job=job,
            timeout=_PUSH_TIMEOUT_S,
            handler=partial(basic_auth_handler, username=unquote(user), password=unquote(password))
            if credentials
            else default_handler,
        )

    def send_run(self, model: str, families: Families) -> None:
        """Replace the group."""
        self._push(registry=families, grouping_key=self._worker | {"model": model})

    def send_success(self, model: str, families: Families) -> None:
        """Likewise; it is no machine's own, so that there is one for each model."""
        self._push(registry=families, grouping_key={"model": model})


class Sender:
    """Sends again and again from a thread of its own, which a run never waits for long.

    Args:
        sink: Where to.
        send: Sends all there is to it.
        interval_s: How often.
    """

    def __init__(
        self,
        sink: Textfiles | Gateway,
        send: Callable[[Textfiles | Gateway], None],
        interval_s: float,
    ) -> None:
        self._sink = sink
        self._send = send
        self._interval_s = interval_s
        self._wake = threading.Event()
        self._ended = False
        self._warned = False
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="metrics", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Send now."""
        self._wake.set()

    def end(self) -> None:
        """Send what there is now, and end."""
        self._ended = True
        self._wake.set()

    def join(self, until: float) -> None:
        """Wait for the end, until that moment of the monotonic clock at the latest."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._warn("it takes too long")

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            # What is sent after this is complete.
            last = self._ended
            try:
                self._send(self._sink)
            except (OSError, HTTPException) as error:
                self._warn(_words(error))
            if last:
                return

    def _warn(self, why: str) -> None:
        """Once: a gateway that is away stays away for many intervals."""
        if not self._warned:
            self._warned = True
            log.warning("metrics_not_sent", to=self._sink.place, why=why)


def end_all(senders: list[Sender]) -> None:
    """End them side by side; within seconds, whatever they have to do yet."""
    for sender in senders:
        sender.end()
    until = time.monotonic() + _LAST_S
    for sender in senders:
        sender.join(until)


def _words(error: OSError | HTTPException) -> str:
    """What happened; the errors' own texts may quote what a server sent, or the address."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", error)  # urllib wraps what the socket said
    words = reason.strerror if isinstance(reason, OSError) else None
    return words or type(reason).__name__
