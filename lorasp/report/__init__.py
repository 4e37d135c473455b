"""From result files to the report: tables beside the paper's, figures, one page, provenance."""
