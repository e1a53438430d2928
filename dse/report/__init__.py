"""A study as one offline HTML file, with its front as CSV and JSON beside it."""

from dse.report.files import ReportFiles, write_report

__all__ = ["ReportFiles", "write_report"]
