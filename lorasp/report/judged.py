"""The verdicts on what a result folder holds: the results as the verdict engine takes them."""

from pathlib import Path
from typing import Any

from lorasp.claims.verdicts import judge
from lorasp.config import Config
from lorasp.report.collect import RUN, Results, per_seed
from lorasp.results import read_json

AUDIT = Path("results", "audit.json")


def audited() -> list[dict[str, Any]] | None:
    """The findings of `lorasp audit`, or None where it has not been run."""
    return read_json(AUDIT, "audit")["findings"] if AUDIT.exists() else None


def judged(config: Config, results: Results) -> list[dict[str, Any]]:
    """One record for every claim of every paper that the configuration names."""
    return judge(
        config,
        config["claims"],
        per_seed(results),
        results.runs[[*RUN, "seed"]],
        results.profiles,
        audited(),
    )
