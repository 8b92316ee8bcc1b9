"""What works here, and what to do about what does not."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from visual_search import catalog, models, record, status
from visual_search.database import migrate
from visual_search.database.connection import Database, open_database
from visual_search.errors import RunError, SchemaError, UsageError
from visual_search.models import registry, weights
from visual_search.models.runtimes import openvino_release
from visual_search.settings import Settings
from visual_search.shard import prepare_output
from visual_search.storage import open_storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at: `detail` says what it is, or what to do about it."""

    subject: str
    ok: bool
    detail: str


def examine(settings: Settings, names: Sequence[str]) -> Iterator[Finding]:
    """Look at everything a run needs, in the order a run needs it; nothing is changed.

    Args:
        settings: The user's.
        names: Models whose weights to look for; the active ones if empty.
    """
    with ExitStack() as stack:
        database: Database | None = None
        try:
            database = stack.enter_context(open_database(settings, any_schema=True))
            found = migrate.current(database)
            yield Finding(subject="database", ok=True, detail=database.place)
            migrate.check(database)
            yield Finding(
                subject="schema",
                ok=True,
                detail=f"{found}, {status.count_images(database):,} images",
            )
        except RunError as error:
            subject = "schema" if isinstance(error, SchemaError) else "database"
            yield Finding(subject=subject, ok=False, detail=str(error))
            database = None
        yield _output(settings, database)
        yield from _models(settings, database, names)
        yield _device(settings)
        yield _dns(database)


def _output(settings: Settings, database: Database | None) -> Finding:
    try:
        storage = open_storage(settings.output_uri, settings.storage)
        if database is None:
            detail = f"{storage.address}, not tried: no catalogue"
            return Finding(subject="output", ok=True, detail=detail)
        prepare_output(storage, database.run(record.catalogue_id))
    except RunError as error:
        return Finding(subject="output", ok=False, detail=str(error))
    return Finding(subject="output", ok=True, detail=f"{storage.address} can be written")


def _models(
    settings: Settings, database: Database | None, names: Sequence[str]
) -> Iterator[Finding]:
    if not names and database is not None:
        with database.transaction() as connection:
            names = [known.name for known in registry.registered(connection) if known.active]
    if not names:
        yield Finding(
            subject="weights", ok=True, detail="no model in use yet; --model NAME looks for one's"
        )
    for name in names:
        try:
            spec = models.resolve(name, settings.models, precision="fp32", home=settings.home)
            found = weights.find(spec, home=settings.home)
        except RunError as error:
            yield Finding(subject=f"weights {name}", ok=False, detail=str(error))
            continue
        if found is None and spec.needs_weights:
            detail = f"not here yet; `vsearch models pull {name}` downloads them"
            yield Finding(subject=f"weights {name}", ok=False, detail=detail)
        else:
            yield Finding(subject=f"weights {name}", ok=True, detail=str(found or "none needed"))


def _device(settings: Settings) -> Finding:
    from visual_search import embed  # noqa: PLC0415 - imports torch

    try:
        device = embed.choose_device(settings.embed.device)
    except UsageError as error:
        return Finding(subject="device", ok=False, detail=str(error))
    fast = "bf16 and fp32" if embed.does_bf16_fast(device) else "fp32"
    release = openvino_release()
    runtimes = "torch" if release is None else f"torch and OpenVINO {release}"
    return Finding(
        subject="device", ok=True, detail=f"{device}, fast in {fast}; there is {runtimes}"
    )


def _dns(database: Database | None) -> Finding:
    hosts = [] if database is None else database.run(catalog.newest_hosts)
    if not hosts:
        return Finding(subject="DNS", ok=True, detail="not tried: no image has a host with a name")
    unknown = {host: words for host in hosts if (words := _look_up(host))}
    if known := [host for host in hosts if host not in unknown]:
        but = f", but not {', '.join(unknown)}" if unknown else ""
        return Finding(subject="DNS", ok=True, detail=f"looks up {', '.join(known)}{but}")
    failed = ", ".join(f"{host} ({words})" for host, words in unknown.items())
    detail = f"cannot look up {failed}; check this machine's resolver"
    return Finding(subject="DNS", ok=False, detail=detail)


def _look_up(host: str) -> str | None:
    """What is wrong with a host's name, in words."""
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return error.strerror or "no address"
    except UnicodeError:  # what cannot be a host's name
        return "no host name"
    return None
