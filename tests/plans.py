"""What the planner does with the statements that product code sends."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One executed statement's plan, as EXPLAIN (ANALYZE, FORMAT JSON) gives it."""

    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    @property
    def node_types(self) -> set[str]:
        return {node["Node Type"] for node in self.nodes()}

    def touches(self, table: str) -> bool:
        return any(node.get("Relation Name", "").startswith(table) for node in self.nodes())

    def rows_read(self, table: str) -> int:
        """Rows that scans of a table returned or filtered out, over all loops."""
        return sum(
            int(
                (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            )
            for node in self.nodes()
            if "Scan" in node["Node Type"] and node.get("Relation Name", "").startswith(table)
        )

    def entries_read(self, table: str) -> int:
        """Entries of a table's indexes that bitmap scans went through, over all loops."""
        return sum(
            int(node["Actual Rows"] * node["Actual Loops"])
            for node in self.nodes()
            if node["Node Type"] == "Bitmap Index Scan" and node["Index Name"].startswith(table)
        )


def explain(connection: Connection, work: Callable[[], object]) -> list[Plan]:
    """Run `work`, and once more each statement it sent, explained; all of that is undone."""
    sent: list[tuple[str, Any]] = []

    def remember(
        _connection: object, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        sent.append((statement, parameters))

    plans = []
    event.listen(connection, "before_cursor_execute", remember)
    with connection.begin_nested() as undone:
        work()
        undone.rollback()
    event.remove(connection, "before_cursor_execute", remember)
    with connection.begin_nested() as undone:
        for statement, parameters in sent:
            if statement.lstrip().upper().startswith(("SELECT", "WITH", "UPDATE", "INSERT")):
                explained = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
                ).scalar_one()
                plans.append(Plan(root=explained[0]["Plan"]))
            elif not statement.startswith(("SAVEPOINT", "ROLLBACK", "RELEASE")):
                connection.exec_driver_sql(statement, parameters)
        undone.rollback()
    return plans
