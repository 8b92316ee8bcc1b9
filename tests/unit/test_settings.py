"""Where settings come from, which one wins, and what a user hears of a wrong one."""

import json
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from visual_search.database.connection import open_database
from visual_search.errors import ExitCode, SettingsError
from visual_search.settings import Settings, load_settings, unknown_variables

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own surroundings set nothing."""
    for name in os.environ:
        if name.upper().startswith("VSEARCH_"):
            monkeypatch.delenv(name)


def config(folder: Path, text: str) -> Path:
    file = folder / "vsearch.toml"
    file.write_text(text)
    return file


def complaint(config: Path | None = None, **flags: Any) -> str:
    """The one sentence with which `load_settings` refuses."""
    with pytest.raises(SettingsError) as refused:
        load_settings(config, **flags)
    assert refused.value.exit_code is ExitCode.USAGE
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- which one wins ---


def test_without_file_environment_and_flags_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.model_dump() == Settings().model_dump()
    assert settings.home == Path("vsearch-data")
    assert settings.database_url is None
    assert settings.download.allow_ports == (80, 443)


def test_file_yields_to_environment_and_environment_to_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(
        tmp_path,
        "[download]\nconcurrency = 2\nper_host = 2\ntries = 2\n[database]\nschema = 'file'\n",
    )
    monkeypatch.setenv("VSEARCH_DOWNLOAD__PER_HOST", "3")
    monkeypatch.setenv("VSEARCH_DOWNLOAD__TRIES", "3")
    settings = load_settings(file, download={"tries": 4})
    assert settings.download.concurrency == 2
    assert settings.download.per_host == 3
    assert settings.download.tries == 4
    assert settings.download.deadline_s == 30
    assert settings.database.schema_name == "file"


def test_flags_that_were_not_given_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path, "output = 'from-file'\n[embed]\nbatch_size = 7\n")
    monkeypatch.setenv("VSEARCH_EMBED__DEVICE", "cpu")
    settings = load_settings(file, output=None, embed={"batch_size": None, "device": None})
    assert settings.output == "from-file"
    assert settings.embed.batch_size == 7
    assert settings.embed.device == "cpu"


def test_flag_of_zero_is_a_flag_that_was_given() -> None:
    assert load_settings(extract={"max_failure_rate": 0.0}).extract.max_failure_rate == 0


def test_vsearch_config_names_the_file_and_the_flag_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSEARCH_CONFIG", str(config(tmp_path, "output = 'variable'")))
    assert load_settings().output == "variable"
    other = tmp_path / "other.toml"
    other.write_text("output = 'flag'")
    assert load_settings(other).output == "flag"


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSEARCH_CONFIG", "")
    monkeypatch.setenv("VSEARCH_DATABASE_URL", "")
    monkeypatch.setenv("VSEARCH_DECODE__WORKERS", "")
    settings = load_settings()
    assert settings.database_url is None
    assert settings.decode.workers is None


def test_lists_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSEARCH_DOWNLOAD__ALLOW_PORTS", "[8080, 8443]")
    monkeypatch.setenv("VSEARCH_DOWNLOAD__ALLOW_NETWORKS", '["10.0.0.0/8", "fd00::/8"]')
    settings = load_settings()
    assert settings.download.allow_ports == (8080, 8443)
    assert settings.download.allow_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_sizes_may_carry_their_unit(tmp_path: Path) -> None:
    settings = load_settings(config(tmp_path, "[download]\nmax_bytes = '20MB'\n"))
    assert settings.download.max_bytes == 20_000_000


def test_table_in_the_file_and_variables_describe_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path, "[models.shoes]\nbuilder = 'shop.nets:shoes'\nrevision = '3'\n")
    monkeypatch.setenv("VSEARCH_MODELS__SHOES__REVISION", "4")
    monkeypatch.setenv("VSEARCH_MODELS__SHOES__MEAN", "[0, 0, 0]")
    table = load_settings(file).models["shoes"]
    assert (table.builder, table.revision, table.mean) == ("shop.nets:shoes", "4", (0, 0, 0))


# --- unknown names ---


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hom = 'x'", "hom"),
        ("[downloads]\ntries = 1", "downloads"),
        ("[download]\nnope = 1", "download.nope"),
        ("[models.shoes]\nbuilder = 'a:b'\nnope = 1", "models.shoes.nope"),
    ],
)
def test_unknown_key_in_a_file_is_refused(tmp_path: Path, text: str, name: str) -> None:
    file = config(tmp_path, text)
    message = complaint(file)
    assert message == f"unknown setting {name!r} (in {file}); `vsearch config show` lists all"


@pytest.mark.parametrize(
    "name",
    [
        "VSEARCH_PORT",
        "VSEARCH_SERVICE_HOST",
        "VSEARCH_DATABASE_PORT_5432_TCP",
        "VSEARCH_DOWNLOAD__NOPE",
        "VSEARCH_DOWNLOAD__TRIES__MORE",
        "VSEARCH_DATABASE__SCHEMA_NAME",
        "VSEARCH_MODELS__SHOES__NOPE",
        "vsearch_nope",
    ],
)
def test_unknown_variable_only_warns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes injects `VSEARCH_PORT=tcp://…` where a service is named vsearch."""
    monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    assert unknown_variables() == [name]
    assert load_settings().model_dump() == Settings().model_dump()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VSEARCH_CONFIG", ""),
        ("VSEARCH_HOME", "elsewhere"),
        ("vsearch_home", "elsewhere"),
        ("VSEARCH_DATABASE__SCHEMA", "other"),
        ("VSEARCH_DOWNLOAD", "{}"),
        ("VSEARCH_MODELS__SHOES__BUILDER", "a:b"),
        ("VSEARCHLIGHT", "another program's"),
    ],
)
def test_known_variable_does_not_warn(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert unknown_variables() == []
    load_settings()


# --- wrong values ---


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DOWNLOAD__PER_HOST", "many", "setting 'download.per_host' (in {}) = 'many': "),
        ("DOWNLOAD__ALLOW_PORTS", "80,443", "a list is written as JSON, like [80, 443]"),
        ("DOWNLOAD__ALLOW_PORTS", '[80, "web"]', "'download.allow_ports' (in {}) = 'web': "),
        ("DOWNLOAD__ALLOW_NETWORKS", '["10.0.0.0/33"]', "= '10.0.0.0/33': "),
        ("EXTRACT__MAX_FAILURE_RATE", "2", "less than or equal to 1"),
        ("EXTRACT__MEMORY_BUDGET", "2 loaves", "'extract.memory_budget' (in {}) = '2 loaves': "),
        ("EMBED__DEVICE", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("DATABASE__SCHEMA", "x" * 64, "setting 'database.schema' (in {})"),
        ("DOWNLOAD", "[]", "setting 'download' (in {}): "),
        ("DOWNLOAD", '{"nope": 1}', "unknown setting 'download.nope' (in {})"),
        ("MODELS__SHOES__MEAN", "[0, 0, 0]", "setting 'models.shoes.builder' (in the environment)"),
    ],
)
def test_wrong_value_in_the_environment_names_its_variable(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"VSEARCH_{name}"
    monkeypatch.setenv(variable, value)
    assert said.format(variable) in complaint()


def test_wrong_value_names_the_file_or_the_command_line_it_came_from(tmp_path: Path) -> None:
    file = config(tmp_path, "[download]\ntries = 0\n")
    assert f"setting 'download.tries' (in {file}) = '0': " in complaint(file)
    message = complaint(file, download={"tries": 99})
    assert "setting 'download.tries' (on the command line) = '99': " in message


def test_a_value_that_vsearch_itself_refuses_is_told_in_its_words_alone() -> None:
    said = complaint(extract={"workers": "zero"})
    assert said.endswith("= 'zero': it is a number from 1 on, or auto")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VSEARCH_DATABASE", SECRET),
        ("VSEARCH_DOWNLOAD__TRIES", f"postgresql://me:{SECRET}@db/shop"),
        ("VSEARCH_MODELS", f'["{SECRET}"]'),
    ],
)
def test_secret_pasted_into_the_wrong_variable_is_not_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    message = complaint()
    assert name in message
    assert SECRET not in message


@pytest.mark.parametrize("line", ["database_url = ['hunter2']", "database_url = 5"])
def test_database_url_of_a_wrong_type_is_not_shown(tmp_path: Path, line: str) -> None:
    message = complaint(config(tmp_path, line))
    assert "setting 'database_url'" in message
    assert SECRET not in message
    assert "5" not in message.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "url",
    [
        f"me:{SECRET}@db/shop",
        f"mysql://me:{SECRET}@db/shop",
        f"postgresql://me:{SECRET}@db:port/shop",
        f"host=db password={SECRET}",
        # What SQLAlchemy takes apart in another way than was meant, and would show as a host or
        # as a name.
        f"postgresql://me:{SECRET}@{SECRET}@db/shop",
        f"postgresql://m/e:{SECRET}@db/shop",
        f"postgresql://db/shop password={SECRET}",
    ],
)
def test_database_url_that_cannot_be_used_is_refused_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSEARCH_DATABASE_URL", url)
    with pytest.raises(SettingsError) as refused, open_database(load_settings()):
        pass
    assert "VSEARCH_DATABASE_URL" in str(refused.value)
    assert SECRET not in str(refused.value)


# --- the file itself ---


def test_missing_config_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none.toml"
    said = f"cannot read the config file {missing}: No such file or directory"
    assert complaint(missing) == said
    monkeypatch.setenv("VSEARCH_CONFIG", str(missing))
    assert complaint() == said


def test_folder_is_no_config_file(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"cannot read the config file {tmp_path}: Is a directory"


@pytest.mark.parametrize("content", [b"home = ", b"\xff\xfe", b"home: x"])
def test_config_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "vsearch.toml"
    file.write_bytes(content)
    assert complaint(file).startswith(f"the config file {file} is not TOML: ")


# --- what is shown ---


def test_shown_settings_hold_no_secret(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        f"""
        database_url = "postgresql://me:{SECRET}@db:6432/shop?sslmode=require"
        output = "s3://key:{SECRET}@vectors/shop"
        [download]
        proxy = "http://me:{SECRET}@proxy.example:3128"
        [download.headers."cdn.example"]
        Authorization = "Bearer {SECRET}"
        [weights]
        mirror = "https://mirror.example/w?token={SECRET}"
        [metrics]
        pushgateway = "https://me:{SECRET}@gateway.example:9091/metrics-of/shop"
        [models.shoes]
        builder = "torchvision:resnet18"
        weights = "https://me:{SECRET}@files.example/shoes.pth"
        """,
    )
    settings = load_settings(file)
    shown = settings.shown()
    assert SECRET not in json.dumps(shown)
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    groups = (settings.download, settings.weights, settings.metrics, settings.models)
    for group in (settings.database_url, *groups):
        assert SECRET not in repr(group)
    assert shown["download"]["proxy"] == "http://proxy.example:3128"
    assert shown["metrics"]["pushgateway"] == "https://gateway.example:9091/metrics-of/shop"
    assert shown["database_url"] == "postgresql://me:***@db:6432/shop?sslmode=require"
    assert shown["output"] == "s3://vectors/shop"
    assert settings.database_url is not None
    assert SECRET in settings.database_url.get_secret_value()


@pytest.mark.parametrize(
    "proxy",
    [
        f"me:{SECRET}@proxy:3128",
        f"socks5://me:{SECRET}@proxy",
        # A password with an unescaped / makes a host and a port of what stands before it.
        f"http://me:1/{SECRET}@proxy:3128",
        f"http://me:{SECRET}?@proxy",
        f"http://proxy {SECRET}",
    ],
)
def test_a_proxy_that_is_none_is_refused_without_its_password(proxy: str, tmp_path: Path) -> None:
    message = complaint(config(tmp_path, f"[download]\nproxy = {json.dumps(proxy)}"))
    assert "setting 'download.proxy'" in message
    assert "http://host:port" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "gateway",
    [
        f"me:{SECRET}@gateway:9091",
        f"ftp://me:{SECRET}@gateway",
        f"http://me:1/{SECRET}@gateway:9091",
        f"http://me:{SECRET}?@gateway",
        f"http://gateway:{SECRET}",
        f"http://gateway:9091/?token={SECRET}",
    ],
)
def test_a_gateway_that_is_none_is_refused_without_its_password(
    gateway: str, tmp_path: Path
) -> None:
    message = complaint(config(tmp_path, f"[metrics]\npushgateway = {json.dumps(gateway)}"))
    assert "setting 'metrics.pushgateway'" in message
    assert "http://host:port" in message
    assert SECRET not in message


def test_shown_settings_name_every_setting_as_the_file_does() -> None:
    shown = load_settings().shown()
    assert shown["database"]["schema"] == "vsearch"
    assert shown["database_url"] is None
    assert shown["download"]["max_bytes"] == 20_000_000
    assert shown["output"] == str(Path.cwd() / "vsearch-data" / "vectors")


def test_output_lies_under_home_unless_it_is_set() -> None:
    settings = load_settings(home=Path("/data"))
    assert settings.output_uri == "/data/vectors"
    assert load_settings(output="s3://vectors").output_uri == "s3://vectors"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.download.tries = 5  # type: ignore[misc] # that it is refused is the test
