"""What `lorasp plan` said of the runs beside what they took."""

import pandas as pd

from lorasp.config import Config
from lorasp.planning.compare import estimates
from lorasp.report.facts import duration
from lorasp.report.steps import mib


def estimates_frame(config: Config) -> pd.DataFrame:
    """A row of text for each group of finished runs, tensors on GPUs alone; none without a plan."""
    rows = []
    for entry in estimates(config):
        row = {
            "Model": entry["model"],
            "Task": entry["task"],
            "Method": config["methods"][entry["method"]]["label"],
            "Recipe": entry["recipe"],
            "Seeds": str(entry["seeds"]),
            "Planned": duration(entry["planned_seconds"]),
            "Took": duration(entry["actual_seconds"]),
            "Took of planned": f"{entry['actual_seconds'] / entry['planned_seconds']:.2f}",
        }
        if entry["planned_tensors"] is not None and entry["actual_tensors"] is not None:
            row["Planned tensors"] = mib(entry["planned_tensors"])
            row["Peak tensors"] = mib(entry["actual_tensors"])
        rows.append(row)
    return pd.DataFrame(rows).fillna("")
