"""What `lorasp plan` said of the runs beside what they took."""

import pandas as pd

from lorasp.config import Config
from lorasp.planning.compare import estimates
from lorasp.report.facts import duration
from lorasp.report.steps import mib


def estimates_frame(config: Config) -> pd.DataFrame:
    """A row of text for each group of finished runs, memory on GPUs alone; none without a plan."""
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
        if entry["planned_memory"] is not None and entry["actual_memory"] is not None:
            row["Planned memory"] = mib(entry["planned_memory"])
            row["Peak memory"] = mib(entry["actual_memory"])
        rows.append(row)
    return pd.DataFrame(rows).fillna("")
