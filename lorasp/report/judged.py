"""The verdicts on what a result folder holds: the results as the verdict engine takes them."""

from pathlib import Path
from typing import Any

from lorasp.claims import claims_file
from lorasp.claims.audit import audit
from lorasp.claims.verdicts import judge
from lorasp.config import Config
from lorasp.report.collect import RUN, Results, per_seed
from lorasp.results import read_json, sha256_of

AUDIT = Path("results", "audit.json")


def audited() -> list[dict[str, Any]] | None:
    """The findings of `lorasp audit` on the claims files as they are; None where it has not run.

    Those on simulated steps, which may be younger than the audit, are found anew.
    """
    if not AUDIT.exists():
        return None
    done = read_json(AUDIT, "audit")
    current = [name for name, digest in done["papers"].items() if _is_current(name, digest)]
    anew = audit(current, check="simulated")
    known = {(finding["paper"], finding["id"]) for finding in anew}
    rest = [finding for finding in done["findings"] if finding["paper"] in current]
    return anew + [one for one in rest if (one["paper"], one["id"]) not in known]


def _is_current(name: str, digest: str) -> bool:
    """Whether the claims file is still the one that was audited."""
    return sha256_of(claims_file(name)) == digest


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
