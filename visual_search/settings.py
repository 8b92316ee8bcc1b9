"""Settings, read once by the command line and handed down: file < environment < flags."""

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from visual_search.errors import SettingsError
from visual_search.redaction import mask_dsn, printable, redact_url

ENV_PREFIX: Final = "VSEARCH_"
CONFIG_VARIABLE: Final = "VSEARCH_CONFIG"
_MAX_SHOWN: Final = 40
# Settings whose wrong values are not repeated, in whatever group.
_SECRETS: Final = ("proxy", "headers", "pushgateway")

# A path, or a password with an unescaped / in it, is no part of a proxy.
_ENDPOINT: Final = r"^https?://[^/?#@\s]+$"
_PROXY: Final = re.compile(r"https?://[^/?#\s]+/?")
# The same for a password in a gateway's address, which may have a path.
_GATEWAY: Final = re.compile(r"https?://[^/?#\s]+(/[^?#@\s]*)?")
_MAX_NAME_BYTES: Final = 63

Precision = Literal["auto", "fp32", "bf16", "int8"]
Device = Literal["auto", "cpu", "cuda", "mps"]
RuntimeName = Literal["auto", "torch", "openvino"]


class _Redacted(BaseModel):
    """Its `repr`, which ends up in logs and tracebacks, shows no secrets of URLs."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _redacted(value)


class _Group(_Redacted):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class DatabaseSettings(_Group):
    """Where in the database, and how long to wait for it."""

    # "schema" is a method of pydantic's own, so the field has another name in Python.
    schema_name: str = Field("vsearch", alias="schema", min_length=1, max_length=63)
    outage_s: float = Field(300, ge=0)

    @field_validator("schema_name")
    @classmethod
    def _is_an_ordinary_name(cls, name: str) -> str:
        if not name.isprintable() or set(name) & {":", "\\"}:
            raise ValueError("a schema's name has no control characters, colons or backslashes")
        if len(name.encode()) > _MAX_NAME_BYTES:
            # Postgres would cut it, and two long names might become one.
            raise ValueError(f"a schema's name has at most {_MAX_NAME_BYTES} bytes")
        if name.startswith("pg_") or name in ("information_schema", "$user"):
            raise ValueError("this name is Postgres' own")
        return name


class DownloadSettings(_Group):
    """Politeness towards hosts, and the limits of what is taken from them."""

    concurrency: int = Field(64, ge=1, le=4096)
    per_host: int = Field(8, ge=1)
    requests_per_second: float | None = Field(None, gt=0)
    connect_timeout_s: float = Field(10, gt=0)
    deadline_s: float = Field(30, gt=0)
    max_bytes: ByteSize = Field(ByteSize(20_000_000), gt=0)
    max_redirects: int = Field(5, ge=0, le=20)
    tries: int = Field(3, ge=1, le=10)
    user_agent: str | None = Field(None, pattern=r"^[ -~]+$")
    allow_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    allow_ports: tuple[int, ...] = (80, 443)
    proxy: SecretStr | None = None
    ca_file: Path | None = None
    headers: dict[str, dict[str, SecretStr]] = Field(default_factory=dict)

    @field_validator("proxy")
    @classmethod
    def _is_http(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is not None and not _PROXY.fullmatch(proxy.get_secret_value()):
            raise ValueError("a proxy is given as http://host:port")
        return proxy


class DecodeSettings(_Group):
    """How image files become pixels."""

    max_pixels: int = Field(50_000_000, ge=1)
    timeout_s: float = Field(10, gt=0)
    workers: int | None = Field(None, ge=1)


class EmbedSettings(_Group):
    """How pixels become vectors."""

    device: Device = "auto"
    runtime: RuntimeName = "auto"
    compile: bool = False
    precision: Precision = "auto"
    batch_size: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)


class ExtractSettings(_Group):
    """Leases, shards and limits of a run."""

    engine: Literal["local", "ray"] = "local"
    workers: int | Literal["auto"] | None = None
    lease_s: float = Field(60, gt=0)
    shard_rows: int = Field(10_000, ge=1)
    shard_max_s: float = Field(300, gt=0)
    drain_s: float = Field(20, ge=0)
    wait_s: float = Field(90, ge=0)
    memory_budget: ByteSize = Field(ByteSize(1 << 30), gt=0)
    max_failure_rate: float = Field(0.5, ge=0, le=1)
    max_attempts: int = Field(8, ge=1)
    backoff_s: float = Field(300, ge=0)

    @field_validator("workers", mode="plain")
    @classmethod
    def _is_a_number_or_auto(cls, workers: object) -> int | Literal["auto"] | None:
        text = str(workers)
        if workers is None or text == "auto":
            return None if workers is None else "auto"
        if not text.isdecimal() or int(text) < 1:
            raise ValueError("it is a number from 1 on, or auto")
        return int(text)


class RaySettings(_Group):
    """Where workers run that are actors, and what each asks Ray for."""

    address: str | None = None
    cpus_per_worker: int | None = Field(None, ge=1)
    gpus_per_worker: float | None = Field(None, ge=0)


class StorageSettings(_Group):
    """How an object store is reached. Credentials come from where its own tools look for them."""

    endpoint: str | None = Field(None, pattern=_ENDPOINT)
    region: str | None = None
    anonymous: bool = False
    outage_s: float = Field(120, gt=0)


class WeightsSettings(_Group):
    """Where published weights are fetched from."""

    mirror: str | None = None
    timeout_s: float = Field(30, gt=0)


class MetricsSettings(_Group):
    """Where runs say how they go."""

    textfile_folder: Path | None = None
    pushgateway: SecretStr | None = None
    job: str = Field("vsearch", min_length=1)
    instance: str | None = Field(None, min_length=1)
    interval_s: float = Field(15, gt=0)

    @field_validator("pushgateway")
    @classmethod
    def _is_an_address(cls, gateway: SecretStr | None) -> SecretStr | None:
        if gateway is not None and not _is_gateway(gateway.get_secret_value()):
            raise ValueError("a push gateway is given as http://host:port")
        return gateway


class ModelTable(_Group):
    """One `[models.NAME]` table: what a user may say of a model. `models/spec.py` reads it."""

    builder: str
    revision: str | None = None
    weights: str | None = None
    weights_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    layer: str | None = None
    dim: int | None = Field(None, ge=1)
    decode: Literal["exact", "draft"] = "exact"
    resize: Literal["squash", "shortest_edge+center_crop"] = "squash"
    size: int = Field(224, ge=1)
    shortest_edge: int | None = Field(None, ge=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    normalize: bool = False
    # Not int8: what that is, depends on the catalogue.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    stored: Literal["float32", "float16"] = "float32"
    model_id: str | None = None


class Settings(_Redacted, BaseSettings):
    """Everything that can be set. Frozen; `load_settings` is the only maker."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
    )

    home: Path = Path("vsearch-data")
    database_url: SecretStr | None = None
    output: str | None = None
    database: DatabaseSettings = DatabaseSettings()
    download: DownloadSettings = DownloadSettings()
    decode: DecodeSettings = DecodeSettings()
    embed: EmbedSettings = EmbedSettings()
    extract: ExtractSettings = ExtractSettings()
    ray: RaySettings = RaySettings()
    storage: StorageSettings = StorageSettings()
    weights: WeightsSettings = WeightsSettings()
    metrics: MetricsSettings = MetricsSettings()
    models: dict[str, ModelTable] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file; no .env files and no secret folders."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, _Environment(settings_cls), TomlConfigSettingsSource(settings_cls)

    @property
    def output_uri(self) -> str:
        """Where vectors go: `output`, or `home`/vectors."""
        return self.output or str(self.home.absolute() / "vectors")

    def shown(self) -> dict[str, Any]:
        """All settings as plain values, secrets masked."""
        plain: dict[str, Any] = _redacted(self.model_dump(mode="json", by_alias=True))
        plain["output"] = _redacted(self.output_uri)
        if self.database_url is not None:
            plain["database_url"] = mask_dsn(self.database_url.get_secret_value())
        if self.download.proxy is not None:
            plain["download"]["proxy"] = redact_url(self.download.proxy.get_secret_value())
        if self.metrics.pushgateway is not None:
            shown = redact_url(self.metrics.pushgateway.get_secret_value())
            plain["metrics"]["pushgateway"] = shown
        return plain


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Read file and environment, lay `flags` on top.

    Args:
        config: TOML file; without it, the file `VSEARCH_CONFIG` names, if it is set.
        flags: Nested dicts like the file's tables; `None` values count as not given.

    Raises:
        SettingsError: A key is unknown, a value is wrong, or the file cannot be read.
    """
    variable = os.environ.get(CONFIG_VARIABLE)
    named = config or (Path(variable) if variable else None)
    if named is not None:
        _check_readable(named)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=named)

    given = _given(flags)
    try:
        return FromFile(**given)
    except ValidationError as error:
        raise SettingsError(_sentence(error.errors()[0], given, named)) from None


def unknown_variables() -> list[str]:
    """`VSEARCH_*` variables that name no setting. Kubernetes injects such names: they only warn."""
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and name != CONFIG_VARIABLE
        and not _names_a_setting(name)
    )


class _Environment(EnvSettingsSource):
    """`VSEARCH_*` variables as settings; those that name none are left out."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {
            name: value for name, value in self.env_vars.items() if _names_a_setting(name)
        }

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """`value` from JSON; as it is if it is none.

        The validation that follows refuses it too, and knows the whole name of the setting.
        """
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _is_gateway(url: str) -> bool:
    try:
        return _GATEWAY.fullmatch(url) is not None and urlsplit(url).port != 0
    except ValueError:  # the port is no number
        return False


def _names_a_setting(variable: str) -> bool:
    """Whether `VSEARCH_A__B` follows groups and tables down to something that can be set."""
    if not variable.upper().startswith(ENV_PREFIX):
        return False
    here: Any = Settings
    for name in variable[len(ENV_PREFIX) :].lower().split("__"):
        if isinstance(here, type) and issubclass(here, BaseModel):
            by_name = {field.alias or own: field for own, field in here.model_fields.items()}
            if name not in by_name:
                return False
            here = by_name[name].annotation
        elif getattr(here, "__origin__", None) is dict:
            here = get_args(here)[1]
        else:
            return False
    return True


def _sentence(error: ErrorDetails, given: dict[str, Any], config: Path | None) -> str:
    """One sentence for the user: which setting, where it stands, what is wrong with it."""
    # What follows a position in a list is pydantic's own: the position, the member of a union.
    path = [str(part) for part in takewhile(lambda part: isinstance(part, str), error["loc"])]
    name, source = ".".join(path), _source(path, given, config)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown setting {name!r} ({source}); `vsearch config show` lists all"
        case "tuple_type":
            hint = "; in the environment a list is written as JSON, like [80, 443]"
        case _:
            hint = ""
    said = error["msg"].removeprefix("Value error, ")
    return f"setting {name!r} ({source}){_shown(path, error['input'])}: {said}{hint}"


def _source(path: Sequence[str], given: dict[str, Any], config: Path | None) -> str:
    """Where the value of the setting at `path` came from."""
    flag: Any = given
    for name in path:
        flag = flag.get(name) if isinstance(flag, dict) else None
    if flag is not None:
        return "on the command line"
    present = {name.upper(): name for name in os.environ if os.environ[name]}
    for length in range(len(path), 0, -1):
        variable = ENV_PREFIX + "__".join(path[:length]).upper()
        if variable in present:
            return f"in {present[variable]}"
    return f"in {config or 'the environment'}"


def _shown(path: Sequence[str], value: Any) -> str:
    """` = value` of a setting in a group; nothing where a secret may have been pasted."""
    text = str(value) if isinstance(value, str | int | float) else ""
    may_be_secret = len(path) == 1 or path[1] in _SECRETS or "://" in text or "@" in text
    if not text or may_be_secret:
        return ""
    return f" = {printable(text, _MAX_SHOWN)!r}"


def _redacted(plain: Any) -> Any:
    """`plain` without the credentials and queries of the URLs in it."""
    match plain:
        case dict():
            return {name: _redacted(value) for name, value in plain.items()}
        case list():
            return [_redacted(value) for value in plain]
        case str() if "://" in plain:
            return redact_url(plain)
    return plain


def _check_readable(config: Path) -> None:
    try:
        with config.open("rb") as file:
            tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"cannot read the config file {config}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the config file {config} is not TOML: {error}") from None


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in flags.items():
        inner = _given(value) if isinstance(value, dict) else value
        if inner is not None and inner != {}:
            kept[name] = inner
    return kept
