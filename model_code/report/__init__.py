"""The run's HTML page: `ReportData` in, one self-contained page out."""

from model_code.report.data import ReportData
from model_code.report.page import write_report

__all__ = ["ReportData", "write_report"]
