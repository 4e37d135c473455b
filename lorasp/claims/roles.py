"""Which of the paper's models and tasks those of a configuration are, or stand for."""

from typing import Any

from lorasp.claims import load_claims
from lorasp.config import Config, resolve_task


def paper_model(config: Config, model: str) -> str:
    """The paper's model that this one is, or stands for."""
    return str(config["models"][model].get("stands_for", model))


def is_papers(config: Config, model: str) -> bool:
    """True where the model is one of the paper's own."""
    named = {claim.get("model") for claim in load_claims()["claims"]}
    return model in named and "stands_for" not in config["models"][model]


def paper_task(task: dict[str, Any]) -> str | None:
    """The paper's task whose table and column this one has, in its own right or in that role."""
    for claim in load_claims()["claims"]:
        place = (claim.get("table"), claim.get("column"))
        if claim["kind"] == "score" and place == (task.get("table"), task.get("column")):
            return str(claim["task"])
    return None


def models_for(config: Config, role: str) -> list[str]:
    """The configuration's models that are the paper's model `role`; or those that stand for it."""
    own = [name for name in config["models"] if name == role and is_papers(config, name)]
    return own or [name for name in config["models"] if paper_model(config, name) == role]


def tasks_for(config: Config, role: str) -> list[str]:
    """The configuration's tasks that are the paper's task `role`, or have its table and column."""
    tasks = {name: resolve_task(config, name) for name in config["tasks"]}
    own = [name for name in tasks if name == role]
    return own or [name for name, task in tasks.items() if paper_task(task) == role]
