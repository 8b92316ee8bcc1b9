"""`vsearch models`: which there are, what they are, their weights, and which a name stands for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_search.cli.context import CliContext, complain, echo_json, table
from visual_search.errors import ModelError, NoCatalogueError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visual_search.models.inventory import ListedModel
    from visual_search.models.registry import RegisteredModel
    from visual_search.models.spec import ModelSpec
    from visual_search.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The models: built in, your own, and in use.")

NameOrId = Annotated[
    str, typer.Argument(metavar="NAME|MODEL_ID", help="A model's name, or one model's id.")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="Of a name: auto, fp32, bf16 or int8."),
]


@app.command("list")
def list_(
    context: typer.Context,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", metavar="NAME", help="Of models that have not run yet; else fp32."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the models of the catalogue, then your own, then the built-in ones.

    \b
    Examples:
      vsearch models list
      vsearch models list --json | jq -r '.models[] | select(.active).model_id'

    Needs no catalogue and loads no model.
    """
    from visual_search.models.inventory import list_models

    cli: CliContext = context.obj
    settings = cli.settings_with(embed={"precision": precision})
    models = list_models(
        _known(cli, settings),
        settings.models,
        precision=settings.embed.precision,
        home=settings.home,
    )
    if as_json:
        echo_json({"models": [_document(model) for model in models]})
        return
    typer.echo(
        table(
            ("model", "model_id", "dim", "precision", "state", "weights"),
            [
                (
                    model.name,
                    model.model_id,
                    model.dim,
                    model.spec and model.spec.precision,
                    model.state,
                    model.weights_state,
                )
                for model in models
            ],
        )
    )
    for model in models:
        if model.problem is not None:
            typer.echo(f"\n{model.name}: {model.problem}")


@app.command()
def show(
    context: typer.Context,
    model: NameOrId,
    precision: Precision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print all that makes a model, as a table for your own config file.

    \b
    Examples:
      vsearch models show resnet18
      vsearch models show resnet18 --precision bf16
      vsearch models show resnet18 --json | jq -r .model.model_id

    A name shows what `vsearch extract --model NAME` runs here, an id just that model. Needs no
    catalogue.
    """
    from visual_search.models.inventory import registered_model, unregistered_model
    from visual_search.models.registry import RegisteredModel

    cli: CliContext = context.obj
    settings = cli.settings_with(embed={"precision": precision})
    known = _known(cli, settings)
    chosen = _choose(settings, known, model)
    if isinstance(chosen, RegisteredModel):
        shown, spec = registered_model(chosen, home=settings.home), chosen.spec
    else:
        shown, spec = unregistered_model(chosen, settings.models, home=settings.home), chosen
    if as_json:
        echo_json({"model": _document(shown)})
    else:
        typer.echo(_as_toml(shown, spec))


@app.command()
def pull(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="NAME", help="One model, or several.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Download weights, check them, and say where they are. Needs no catalogue.

    \b
    Examples:
      vsearch models pull resnet18
      vsearch models pull resnet18 vgg16
      VSEARCH_WEIGHTS__MIRROR=https://mirror.internal/torch vsearch models pull resnet18

    What is here already is checked, not downloaded again. An interrupted download goes on where it
    stopped. Exit codes: 0 all are here, 2 unknown model or wrong weights, 75 cannot be downloaded
    now.
    """
    from visual_search.models import weights

    cli: CliContext = context.obj
    settings = cli.settings
    # All of them are known before the first large download begins.
    specs = [_of_weights(settings, name) for name in models]
    pulled = []
    for spec in specs:
        path = weights.obtain(spec, settings.weights, home=settings.home)
        pulled.append({"model": spec.name, "path": path and path.absolute()})
        if not as_json:
            typer.echo(f"{spec.name}: {path.absolute() if path else 'needs no file of weights'}")
    if as_json:
        echo_json({"weights": pulled})


@app.command()
def activate(context: typer.Context, model: NameOrId, precision: Precision = None) -> None:
    """Let a name stand for another model from now on.

    \b
    Examples:
      vsearch models activate resnet18-3f7b0c52aa
      vsearch models activate my_resnet
      vsearch models activate resnet18 --precision bf16

    A name is made to stand for what its table makes now. The new model starts without vectors:
    `vsearch extract` makes them beside the old ones, which stay.
    """
    from visual_search.models import registry, weights
    from visual_search.models.registry import RegisteredModel

    cli: CliContext = context.obj
    settings = cli.settings_with(embed={"precision": precision})
    with cli.database(settings) as database:
        with database.transaction() as connection:
            known = registry.registered(connection)
        chosen = _choose(settings, known, model)
        if not isinstance(chosen, RegisteredModel):
            # A model whose weights cannot be had is not registered.
            weights.obtain(chosen, settings.weights, home=settings.home)
        with database.transaction() as connection:
            if not isinstance(chosen, RegisteredModel):
                chosen = registry.add(connection, chosen)
            before = registry.activate(connection, chosen)
    if before is None:
        typer.echo(f"{chosen.name} stands for {chosen.model_id}")
    elif before.model_id == chosen.model_id:
        typer.echo(f"{chosen.name} stands for {chosen.model_id} already")
    else:
        typer.echo(f"{chosen.name} stands for {chosen.model_id}, no longer for {before.model_id}")
    _warn_of_another_table(settings, chosen)


@app.command()
def retire(context: typer.Context, model: NameOrId) -> None:
    """Take a model out of use: `status` and `extract` leave it out, its vectors stay.

    \b
    Examples:
      vsearch models retire resnet18
      vsearch models retire resnet18-3f7b0c52aa

    A run that is under way goes on to its end.
    """
    from visual_search.models import registry

    cli: CliContext = context.obj
    with cli.database() as database, database.transaction() as connection:
        known = registry.registered(connection)
        chosen = _registered(known, model) or registry.active(connection, model)
        if chosen is None and any(other.name == model for other in known):
            typer.echo(f"{model} is retired already")
            return
        if chosen is None:
            raise ModelError(
                f"no model {model!r} in this catalogue; `vsearch models list` shows them"
            )
        was_active = registry.retire(connection, chosen)
    if was_active:
        typer.echo(
            f"{chosen.model_id} is retired; `vsearch models activate {chosen.model_id}` takes it "
            "into use again"
        )
    else:
        typer.echo(f"{chosen.model_id} was not in use")


def _known(cli: CliContext, settings: "Settings") -> "list[RegisteredModel]":
    """The catalogue's models; none where there is no catalogue."""
    from visual_search.models import registry

    try:
        with cli.database(settings) as database, database.transaction() as connection:
            return registry.registered(connection)
    except NoCatalogueError:
        return []


def _registered(known: "Sequence[RegisteredModel]", model_id: str) -> "RegisteredModel | None":
    return next((model for model in known if model.model_id == model_id), None)


def _choose(
    settings: "Settings", known: "Sequence[RegisteredModel]", name_or_id: str
) -> "RegisteredModel | ModelSpec":
    """The model an id or a name means here; its spec if the catalogue does not know it."""
    registered = _registered(known, name_or_id)
    if registered is not None:
        return registered
    from visual_search.models.registry import find_quantised

    spec = _configured(settings, known, name_or_id)
    if spec.awaits_quantisation:
        quantised = find_quantised(known, spec)
        if quantised is None:
            raise ModelError(
                f"{spec.name} has not been quantised in this catalogue; `vsearch extract --model "
                f"{spec.name} --precision int8` does it first"
            )
        return quantised
    return _registered(known, spec.model_id) or spec


def _configured(
    settings: "Settings", known: "Sequence[RegisteredModel]", name_or_id: str
) -> "ModelSpec":
    """What `extract` would run under a name, here and now; or the spec that makes an id."""
    from visual_search.models import built_ins, resolve
    from visual_search.models.inventory import known_precision

    if name_or_id not in {**built_ins(), **settings.models}:
        return _of_id(settings, name_or_id)
    asked = settings.embed.precision
    precision = asked if asked != "auto" else known_precision(known, name_or_id)
    if precision is None:
        from visual_search import embed

        device = embed.choose_device(settings.embed.device)
        precision = "bf16" if embed.does_bf16_fast(device) else "fp32"
    return resolve(name_or_id, settings.models, precision=precision, home=settings.home)


def _of_weights(settings: "Settings", name_or_id: str) -> "ModelSpec":
    """A spec with the weights of a model; they are the same in all precisions."""
    from visual_search.models import built_ins, resolve

    if name_or_id not in {**built_ins(), **settings.models}:
        return _of_id(settings, name_or_id)
    return resolve(name_or_id, settings.models, precision="fp32", home=settings.home)


def _of_id(settings: "Settings", model_id: str) -> "ModelSpec":
    from visual_search.models import find_table, resolve_id

    spec = resolve_id(model_id, settings.models, home=settings.home)
    if spec is None:
        # Says what the name may have been meant for.
        find_table(model_id, settings.models)
        raise ModelError(f"no table makes the model {model_id!r}")
    return spec


def _warn_of_another_table(settings: "Settings", model: "RegisteredModel") -> None:
    """Say if the next `extract` would not run what was activated."""
    from dataclasses import replace

    from visual_search.models import resolve

    try:
        spec = resolve(
            model.name, settings.models, precision=model.spec.precision, home=settings.home
        )
        makes = replace(spec, artefact_sha256=model.spec.artefact_sha256).model_id
    except UsageError as error:
        makes = f"none: {error}"
    if makes != model.model_id:
        complain(
            f"the table of {model.name} makes {makes}; `vsearch extract` will refuse until it is "
            "changed back"
        )


def _as_toml(model: "ListedModel", spec: "ModelSpec") -> str:
    """The table that makes a model, under a comment with what else is known of it."""
    import json

    parts = spec.to_json()
    parts |= parts.pop("preprocessing")
    name = parts.pop("name")
    del parts["version"]
    parts["model_id"] = model.model_id
    weights = model.weights.absolute() if model.weights else model.problem or model.weights_state
    lines = [
        f"# {model.state}; weights: {weights}",
        f"[models.{name if '.' not in name else json.dumps(name)}]",
    ]
    # What a catalogue has made of a table cannot stand in one.
    made = {"precision", "artefact_sha256", "model_id"} if spec.precision == "int8" else set()
    # TOML writes strings, numbers, booleans and lists of them as JSON does.
    lines += [
        f"{'# ' if key in made else ''}{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in parts.items()
        if value is not None
    ]
    return "\n".join(lines)


def _document(model: "ListedModel") -> dict[str, Any]:
    spec = model.spec
    return {
        "name": model.name,
        "model_id": model.model_id,
        "active": model.active,
        "origin": model.origin,
        "dim": model.dim,
        "precision": spec and spec.precision,
        "spec": spec and spec.to_json(),
        "weights_path": model.weights and model.weights.absolute(),
        "problem": model.problem,
    }
