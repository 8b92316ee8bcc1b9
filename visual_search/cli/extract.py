"""`vsearch extract`: the main job."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visual_search.cli.context import CliContext, complain, counted, echo_json, table
from visual_search.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from visual_search.database.connection import Database
    from visual_search.pipeline import ModelResult
    from visual_search.pipeline.checks import Checks
    from visual_search.settings import Settings

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def extract(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", help="Model to run; may be repeated."),
    ] = None,
    all_models: Annotated[
        bool, typer.Option("--all-models", help="Every active model of the catalogue.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="URI", help="Folder, s3://… or gs://… for the shards."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Claim at most so many images per model.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed and waiting images again, now.")
    ] = False,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh", help="Check the vectors there are; embed again what has changed."
        ),
    ] = False,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="With --refresh: only what was not checked for so long, such as 12h or 7d.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", metavar="NAME", help="auto, torch or openvino."),
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Let torch compile the network first."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="auto, fp32, bf16 or int8; another precision is another model.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per forward pass.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="N|auto",
            help="Processes to share the work; auto: one for each GPU.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="Where workers run: local or ray."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="The Ray cluster; without it a Ray of this machine.",
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            metavar="SIZE",
            help="What images in flight may take in memory, such as 2GiB.",
        ),
    ] = None,
    max_failure_rate: Annotated[
        float | None,
        typer.Option(
            "--max-failure-rate",
            min=0,
            max=1,
            help="Stop when more of the images fail for network reasons; 1 never stops.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Embed every image that has no vector from a model yet.

    \b
    Examples:
      vsearch extract --model resnet18
      vsearch extract --model resnet18 --model efficientnet_lite0
      vsearch extract --all-models --output /data/vectors
      vsearch extract --model resnet18 --workers auto
      vsearch extract --model resnet18 --engine ray --ray-address 10.0.0.5:6379
      vsearch extract --model resnet18 --limit 1000 --dry-run
      vsearch extract --model resnet18 --refresh --older-than 7d

    \b
    A second run finds nothing to do, downloads nothing and exits 0. Stopped or killed at any
    moment, the next run goes on where this one was. Exit codes: 0 done (some images may have
    failed), 1 failed, 2 usage or settings, 3 stopped by the failure rate, 75 temporary,
    130 or 143 stopped by a signal.
    """
    cli: CliContext = context.obj
    settings = cli.settings_with(
        output=output,
        embed={
            "device": device,
            "runtime": runtime,
            "compile": compile_,
            "precision": precision,
            "batch_size": batch_size,
        },
        extract={
            "max_failure_rate": max_failure_rate,
            "memory_budget": memory_budget,
            "workers": workers,
            "engine": engine,
        },
        ray={"address": ray_address},
    )
    checks = _checks(older_than, refresh=refresh, retry_failed=retry_failed)
    if checks is not None and (workers is not None or engine is not None):
        raise SettingsError(
            "--refresh works in one process; leave out --workers and --engine, and start the "
            "command as often as you like: they share the checks"
        )
    with cli.database(settings) as database:
        names = _names(database, model or [], all_models=all_models)
        if dry_run:
            _show_plans(database, settings, names, checks, as_json=as_json)
            return
        results = _run(cli, database, settings, names, limit, retry_failed, checks, quiet=as_json)
    from visual_search.pipeline import gravest

    if as_json:
        echo_json({"results": [_document(result) for result in results]})
    raise typer.Exit(int(gravest(results)))


def _run(
    cli: CliContext,
    database: "Database",
    settings: "Settings",
    names: list[str],
    limit: int | None,
    retry_failed: bool,
    checks: "Checks | None",
    *,
    quiet: bool,
) -> list["ModelResult"]:
    from visual_search.pipeline.signals import StopSignals

    # Before an engine takes it for itself.
    out = sys.stdout

    def show(result: "ModelResult") -> None:
        if result.error:
            complain(f"{result.model}: {result.error}")
        if not quiet and (result.run_id or not result.error):
            typer.echo(sentence(result), file=out)

    with _engine(cli, settings, limit, checks) as extract, StopSignals() as stop:
        return extract(
            database,
            settings,
            names,
            stop=stop,
            limit=limit,
            retry_failed=retry_failed,
            on_result=show,
        )


@contextmanager
def _engine(
    cli: CliContext, settings: "Settings", limit: int | None, checks: "Checks | None"
) -> Iterator[Callable[..., list["ModelResult"]]]:
    """What does the work: this process, workers of this machine, or actors on a Ray cluster."""
    from visual_search import pipeline

    if checks is not None:
        yield partial(pipeline.extract, checks=checks)
    elif settings.extract.engine == "ray":
        from visual_search.cli.worker import prepare
        from visual_search.workers import supervisor
        from visual_search.workers.ray_cluster import ray_cluster

        with ray_cluster(settings, limit=limit, prepare=partial(prepare, debug=cli.debug)) as hire:
            yield partial(supervisor.extract, hire=hire)
    elif settings.extract.workers in (None, 1):
        yield pipeline.extract
    else:
        from visual_search.workers import supervisor
        from visual_search.workers.process import hire_processes

        hire = partial(hire_processes, settings, os.environ, limit=limit, debug=cli.debug)
        yield partial(supervisor.extract, hire=hire)


def sentence(result: "ModelResult") -> str:
    """What a run did, in one line."""
    from visual_search.status import duration

    if result.checked:
        return _sentence_of_checks(result)
    waiting = ""
    if result.waiting:
        due = "" if result.due_in_s is None else f" (next in {duration(max(0, result.due_in_s))})"
        waiting = f"; {result.waiting:,} waiting for their next attempt{due}"
    ledger = "; see `vsearch failures list`" if result.any_failed else ""
    if result.run_id is None:
        return f"{result.model}: nothing to do{waiting}{ledger}"
    figures = result.figures
    rate = f", {figures.images_per_second:.1f} images/s" if figures.images_per_second else ""
    return (
        f"{result.model}: {figures.done:,} done, {figures.failed:,} failed, "
        f"{counted(result.shards, 'shard')}{rate}{waiting}{ledger}"
    )


def _sentence_of_checks(result: "ModelResult") -> str:
    if result.run_id is None:
        return f"{result.model}: nothing to check"
    figures = result.figures
    reasons = sorted(
        ((count, reason) for reason, count in figures.failed_by_reason.items() if count),
        reverse=True,
    )
    why = f" ({', '.join(f'{count:,} {reason}' for count, reason in reasons)})" if reasons else ""
    left = f"; {result.waiting:,} left to check" if result.waiting else ""
    checked = figures.done + figures.unchanged + figures.failed
    return (
        f"{result.model}: refreshed: {checked:,} checked, "
        f"{figures.done:,} changed, {figures.unchanged:,} unchanged, "
        f"{figures.failed:,} could not be checked{why}{left}"
    )


def _checks(older_than: str | None, *, refresh: bool, retry_failed: bool) -> "Checks | None":
    if not refresh:
        if older_than is not None:
            raise SettingsError("--older-than is for --refresh; give both or none")
        return None
    if retry_failed:
        raise SettingsError(
            "--refresh checks vectors, --retry-failed is for images without one; run them apart"
        )
    from visual_search.pipeline.checks import Checks

    return Checks(older_than_s=None if older_than is None else _seconds(older_than))


def _seconds(time: str) -> float:
    number, unit = time[:-1], time[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()):
        raise SettingsError(f"--older-than {time!r}: a number and s, m, h, d or w, such as 7d")
    return float(number) * _UNITS[unit]


def _names(database: "Database", names: list[str], *, all_models: bool) -> list[str]:
    if all_models:
        if names:
            raise SettingsError("--model and --all-models exclude each other; give one of them")
        from visual_search.models import registry

        with database.transaction() as connection:
            names = [model.name for model in registry.registered(connection) if model.active]
        if not names:
            raise ModelError("no model has run on this catalogue yet; name one with --model NAME")
    if not names:
        raise SettingsError(
            "no model given; `vsearch extract --model NAME`, see `vsearch models list`"
        )
    return list(dict.fromkeys(names))


def _show_plans(
    database: "Database",
    settings: "Settings",
    names: list[str],
    checks: "Checks | None",
    *,
    as_json: bool,
) -> None:
    from visual_search import pipeline

    plans = [pipeline.plan(database, settings, name, checks=checks) for name in names]
    claimable = "claimable" if checks is None else "to_check"
    if as_json:
        echo_json(
            {
                "plans": [
                    {
                        "model": plan.model,
                        "model_id": plan.model_id,
                        claimable: plan.claimable,
                        "output": settings.shown()["output"],
                    }
                    for plan in plans
                ]
            }
        )
        return
    typer.echo(
        table(
            ("model", "model_id", "would embed" if checks is None else "would check"),
            [(plan.model, plan.model_id, plan.claimable) for plan in plans],
        )
    )


def _document(result: "ModelResult") -> dict[str, Any]:
    figures = result.figures
    counts = {"claimed": figures.claimed, "done": figures.done, "failed": figures.failed}
    if result.checked:
        counts = {
            "checked": figures.done + figures.unchanged + figures.failed,
            "changed": figures.done,
            "unchanged": figures.unchanged,
            "not_checked": figures.failed,
        }
    return {
        "model": result.model,
        "model_id": result.model_id,
        "run_id": result.run_id,
        "refresh": result.checked,
        "counts": counts,
        "failed_by_reason": {
            reason: count for reason, count in figures.failed_by_reason.items() if count
        },
        "shards": result.shards,
        "waiting": result.waiting,
        "due_in_seconds": result.due_in_s,
        "images_per_second": figures.images_per_second,
        "exit_code": int(result.exit_code),
        "error": result.error,
    }
