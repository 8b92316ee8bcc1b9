"""What the source never says (code run from data, a shell, SQL made of strings), and its needs."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).parent.parent.parent
SOURCES = sorted(
    file for folder in ("visual_search", "migrations") for file in (PROJECT / folder).rglob("*.py")
)

# Called by these full names, whatever a module calls them after importing.
FORBIDDEN = {
    "builtins.eval": "runs text",
    "builtins.exec": "runs text",
    "builtins.compile": "prepares text to be run",
    "builtins.__import__": "imports what a value says",
    "pickle.load": "runs what a file says",
    "pickle.loads": "runs what bytes say",
    "pickle.Unpickler": "runs what a file says",
    "marshal.load": "makes code of a file",
    "marshal.loads": "makes code of bytes",
    "shelve.open": "is pickle",
    "dill.load": "is pickle",
    "dill.loads": "is pickle",
    "joblib.load": "is pickle",
    "cloudpickle.load": "is pickle",
    "cloudpickle.loads": "is pickle",
    "pandas.read_pickle": "is pickle",
    "torch.jit.load": "runs what a file says",
    "torch.hub.load": "runs what a server says",
    "yaml.load": "makes any object",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes any object",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "subprocess.getoutput": "starts a shell",
    "subprocess.getstatusoutput": "starts a shell",
    "PIL.Image.open": "tries decoders that start programs; decode.formats names one class each",
}
# An argument that may only have this value where it is given; or must be given.
ONLY = {"weights_only": True, "shell": False, "allow_pickle": False, "trust_remote_code": False}
REQUIRED = {"torch.load": "weights_only"}

SQL_METHODS = {
    "execute",
    "executemany",
    "exec_driver_sql",
    "execute_batch",
    "execute_values",
    "copy_expert",
    "scalar",
    "scalars",
}
SQL_FUNCTIONS = {
    "sqlalchemy.text",
    "sqlalchemy.DDL",
    "sqlalchemy.literal_column",
    "sqlalchemy.sql.text",
    "psycopg2.sql.SQL",
}

# SQL that is not a literal: the file and the source of the argument, and why it is safe.
ALLOWED_SQL = {
    ("migrations/env.py", "f'CREATE SCHEMA IF NOT EXISTS {quoted(schema)}'"): (
        "a name cannot be a parameter; `quoted` doubles its quotation marks"
    ),
    ("visual_search/models/registry.py", "statement"): (
        "written by the server with format('%I', …) from an integer, and sent back to it"
    ),
    ("visual_search/catalog/query.py", "f'FETCH {_ROWS_AT_ONCE} FROM vsearch_query'"): (
        "a constant of the module; FETCH takes no parameters"
    ),
    ("visual_search/catalog/tables.py", "statement"): (
        "COPY takes no parameters; its table's name is a literal at each call"
    ),
}


def findings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and complaint of everything that must not be in a module, but for SQL."""
    names = imported_names(tree)
    for call in calls(tree):
        called = full_name(call.func, names)
        if called in FORBIDDEN:
            yield call.lineno, f"{called} {FORBIDDEN[called]}"
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        for name, value in given.items():
            if name in ONLY and not is_constant(value, ONLY[name]):
                yield call.lineno, f"{name} may only be {ONLY[name]}"
        if called in REQUIRED and REQUIRED[called] not in given:
            yield call.lineno, f"{called} without {REQUIRED[called]}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if (full_name(target, names) or "").endswith(".LOAD_TRUNCATED_IMAGES"):
                    yield node.lineno, "half a picture would pass for a whole one"


def assembled_sql(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and source of each statement that is not a literal where it is executed."""
    names = imported_names(tree)
    literals = literal_names(tree)
    for call in calls(tree):
        method = call.func.attr if isinstance(call.func, ast.Attribute) else None
        is_sql = method in SQL_METHODS or full_name(call.func, names) in SQL_FUNCTIONS
        # Nothing to look at: `run.execute()`, `result.scalar()`.
        statement = next(iter(call.args), None) or next(
            (k.value for k in call.keywords if k.arg in ("statement", "text", "sql")), None
        )
        if is_sql and statement is not None and not is_literal(statement, names, literals):
            yield call.lineno, ast.unparse(statement)


def is_literal(statement: ast.expr, names: dict[str, str], literals: set[ast.Name]) -> bool:
    """A string as it stands, or a name for one; or `text(…)`, which is looked at by itself."""
    if isinstance(statement, ast.Name):
        return statement in literals
    if isinstance(statement, ast.Constant):
        return isinstance(statement.value, str)
    return isinstance(statement, ast.Call) and full_name(statement.func, names) in SQL_FUNCTIONS


def literal_names(tree: ast.Module) -> set[ast.Name]:
    """Names in loops over literals: `for statement in ("…", "…"): …`."""
    found = set()
    for loop in ast.walk(tree):
        if (
            isinstance(loop, ast.For)
            and isinstance(loop.target, ast.Name)
            and isinstance(loop.iter, ast.Tuple)
            and all(isinstance(item, ast.Constant) for item in loop.iter.elts)
        ):
            alike = [
                n for n in ast.walk(loop) if isinstance(n, ast.Name) and n.id == loop.target.id
            ]
            if all(isinstance(n.ctx, ast.Load) for n in alike if n is not loop.target):
                found |= set(alike)
    return found


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imported_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for, in full."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str | None:
    """`a.b.c` with `a` as it was imported; a name that was not is a builtin's, or the module's."""
    if isinstance(node, ast.Name):
        return names.get(node.id, f"builtins.{node.id}")
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def place(file: Path) -> str:
    return file.relative_to(PROJECT).as_posix()


def test_all_sources_are_looked_at() -> None:
    places = {place(file) for file in SOURCES}
    assert len(places) > 80
    assert {"migrations/env.py", "visual_search/models/loading.py"} <= places


def test_no_source_runs_what_data_says() -> None:
    found = [
        f"{place(file)}:{line}: {what}" for file in SOURCES for line, what in findings(parsed(file))
    ]
    assert found == []


def test_no_sql_is_made_of_strings_but_where_it_is_said_why() -> None:
    found = {
        (place(file), source): line
        for file in SOURCES
        for line, source in assembled_sql(parsed(file))
    }
    unexplained = found.keys() - ALLOWED_SQL.keys()
    assert {f"{file}:{found[file, sql]}: {sql}" for file, sql in unexplained} == set()
    assert ALLOWED_SQL.keys() - found.keys() == set(), "exceptions that nothing needs any more"


def test_tables_that_are_copied_into_are_named_in_the_source() -> None:
    """The reason of one of the exceptions, held: whoever calls the copier names a table."""
    trees = [parsed(file) for file in SOURCES if "catalog" in file.parts]
    (copier,) = [
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "copy_expert" in ast.unparse(node)
    ]
    tables = [
        call.args[1]
        for tree in trees
        for call in calls(tree)
        if isinstance(call.func, ast.Name) and call.func.id == copier
    ]
    assert len(tables) >= 3
    assert all(isinstance(table, ast.Constant) for table in tables)


@pytest.mark.parametrize(
    "planted",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "from torch.serialization import load\nload(path, weights_only=False)",
        "torch.jit.load(path)",
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "import pickle as p\np.Unpickler(file).load()",
        "import marshal\nmarshal.loads(data)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(file)",
        "eval(text)",
        "exec(compile(text, name, 'exec'))",
        "__import__(name)",
        "import os\nos.system(command)",
        "from os import system\nsystem(command)",
        "import os\nos.popen(command)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "import subprocess\nsubprocess.Popen(command, shell=asked)",
        "from subprocess import getoutput\ngetoutput(command)",
        "from PIL import Image\nImage.open(file)",
        "import PIL.Image\nPIL.Image.open(file)",
        "from PIL import ImageFile\nImageFile.LOAD_TRUNCATED_IMAGES = True",
    ],
)
def test_code_run_from_data_would_be_found(planted: str) -> None:
    code = planted if planted.startswith(("import", "from")) else f"import torch\n{planted}"
    assert list(findings(ast.parse(code)))


@pytest.mark.parametrize(
    "planted",
    [
        'connection.execute(text(f"SELECT * FROM {table}"))',
        'connection.execute(text("SELECT * FROM " + table))',
        'connection.execute(text("SELECT %s" % value))',
        'connection.execute(text("SELECT {}".format(value)))',
        'connection.execute(text(" ".join(parts)))',
        "connection.execute(text(sql))",
        'connection.execute(statement=text(f"{sql}"))',
        "import sqlalchemy\nconnection.execute(sqlalchemy.text(sql))",
        "import sqlalchemy as sa\nconnection.execute(sa.text(sql))",
        "from sqlalchemy import text as t\nconnection.execute(t(sql))",
        "connection.exec_driver_sql(statement)",
        'cursor.execute(f"SELECT {value}")',
        "cursor.copy_expert(statement, file)",
        'op.execute(f"DROP TABLE {table}")',
        "DDL(statement)",
        "connection.scalar(statement)",
        'for sql in ("SELECT 1", made): connection.execute(text(sql))',
        'for sql in ("SELECT 1",):\n    sql += where\n    connection.execute(text(sql))',
    ],
)
def test_sql_made_of_strings_would_be_found(planted: str) -> None:
    code = (
        planted if planted.startswith("import") else f"from sqlalchemy import DDL, text\n{planted}"
    )
    assert list(assembled_sql(ast.parse(code)))


@pytest.mark.parametrize(
    "harmless",
    [
        'connection.execute(text("SELECT :a"), {"a": value})',
        'connection.execute(text("""SELECT 1"""))',
        'connection.exec_driver_sql("SELECT 1")',
        'for sql in ("SELECT 1", "SELECT 2"): connection.execute(text(sql))',
        "run.execute()",
        "result.scalar()",
        "text = words(error)\nsay(text)",
    ],
)
def test_literal_sql_is_not_complained_about(harmless: str) -> None:
    code = f"from sqlalchemy import text\n{harmless}"
    assert list(assembled_sql(ast.parse(code))) == []


# What is needed. No lock file is kept, by design: it would name index addresses, and those who
# install a library resolve for themselves. What must not be too old has a floor here instead.

FLOORS = {
    "aiohttp": "3.14.1",  # refuses numeric host names in every notation
    "torch": "2.10",  # closes a hole in weights_only loading
    "stamina": "26.1",  # waits exactly as long as a server asked for
    "pillow": "12",
    "psycopg2-binary": "2.9.10",
    "pyarrow": "22",
    "safetensors": "0.6",
    "sqlalchemy": "2.0.40",
}
# Not needed today; whoever adds it starts where its last known hole is closed.
FLOORS_IF_NEEDED = {"python-multipart": "0.0.27"}


def floors(*extras: str) -> dict[str, Version]:
    """The oldest version that is allowed of each requirement, those of `extras` included."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    found = {}
    for requirement in map(Requirement, lines):
        lower = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")]
        assert lower, f"{requirement} may be of any age"
        found[requirement.name] = max(lower)
    return found


def test_every_requirement_has_a_floor_that_is_not_lowered() -> None:
    found = floors("efficientnet", "test", "check")
    for name, least in FLOORS.items():
        assert found[name] >= Version(least), name
    for name, least in FLOORS_IF_NEEDED.items():
        assert found.get(name, Version(least)) >= Version(least), name


def test_what_is_installed_here_is_new_enough() -> None:
    """The suite speaks for these versions."""
    for name, least in floors().items():
        assert Version(version(name)) >= least, name


def test_no_file_pins_packages_beside_the_project() -> None:
    """Neither a lock file nor a list that could say otherwise than the project's own."""
    pins = re.compile(r".*\.lock|requirements.*\.(txt|in)|constraints.*\.txt")
    assert [file.name for file in PROJECT.iterdir() if pins.fullmatch(file.name)] == []
