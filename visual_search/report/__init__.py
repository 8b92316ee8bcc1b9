"""One self-contained HTML page about a model's work: the demo and production runs share it."""

from visual_search.report.content import ReportContent
from visual_search.report.gather import gather
from visual_search.report.page import write_report

__all__ = ["ReportContent", "gather", "write_report"]
