"""From result files to the report: tables beside the paper's, figures, one page, provenance."""

from lorasp.report.page import write_report

__all__ = ["write_report"]
