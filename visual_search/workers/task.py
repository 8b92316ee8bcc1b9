"""What a worker is told: models, a limit, and all settings with their secrets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr, TypeAdapter
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from visual_search.images import RunId
from visual_search.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One worker's part of a command. It may travel to another machine, but not into a log.

    Attributes:
        worker: From 1, as log lines have it.
        models: Names.
        limit: Claim at most so many images for each model.
        run_ids: By model. Given anew for each life of the worker, and before it begins: so its
            keeper knows of whatever it leaves behind.
        packed_settings: As of `pack_settings`.
    """

    worker: int
    models: tuple[str, ...]
    limit: int | None
    run_ids: Mapping[str, RunId] = field(default_factory=dict)
    packed_settings: str = field(repr=False)

    def as_line(self) -> bytes:
        """The task as one line of JSON."""
        return _TASKS.dump_json(self) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Task":
        """What `as_line` wrote."""
        return _TASKS.validate_json(line)

    def settings(self) -> Settings:
        """The settings as they were packed: nothing of this process's environment is in them."""
        return _Unpacked(**json.loads(self.packed_settings))


def pack_settings(settings: Settings) -> str:
    """All settings as JSON, secrets included; paths no longer depend on the current folder."""
    whole = settings.model_copy(
        update={"home": settings.home.absolute(), "output": settings.output_uri}
    )
    return json.dumps(whole.model_dump(by_alias=True), default=_plain)


class _Unpacked(Settings):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what was packed."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


_TASKS: TypeAdapter[Task] = TypeAdapter(Task)
