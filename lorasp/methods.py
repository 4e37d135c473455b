"""The table of methods: what is shipped, what packages offer, what a configuration says of it."""

import functools
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from lorasp.errors import UsageError
from lorasp.plugins import described, installed, source_of
from lorasp.results import first_error, read_yaml

METHODS = Path(__file__).parent / "adapters" / "methods"
GROUPS = ("paper", "ablation", "peer", "peft", "own")
# What an entry does not take over from the one that it is like.
PARTICULAR = ("group", "label")
OPEN = "what its class makes a parameter"
Entry = dict[str, Any]


def table(own: dict[str, Any] | None = None) -> dict[str, Entry]:
    """Every method by name: the shipped entries, those of packages, then `own`, key by key.

    `like` is resolved last, so that what a configuration says of an entry holds for those like it.

    Raises UsageError for a `like` that names no method, or in the end itself.
    """
    merged = merge(merge(_shipped(), _offered()), own or {})
    return {name: deepcopy(_complete(name, merged)) for name in merged}


@functools.cache
def _shipped() -> dict[str, Entry]:
    files = (METHODS / f"{name}.yaml" for name in ("paper", "ablations", "peers", "peft"))
    return {name: entry for file in files for name, entry in read_yaml(file).items()}


def _offered() -> dict[str, Entry]:
    """What packages offer; a name of the suite's own stays the suite's (see `plugins.left_out`)."""
    return {name: entry for name, entry in installed().items() if name not in _shipped()}


def merge(under: Any, over: Any) -> Any:
    """The value `over`, where both are mappings key by key; neither is changed."""
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {key: merge(under.get(key), value) for key, value in over.items()}
    return over


def _complete(name: str, merged: dict[str, Any]) -> Any:
    entry = merged[name]
    if not isinstance(entry, dict):
        return entry  # the schema says what is wrong with it
    found = {"group": "own", "label": name, **_like(name, merged, ())}
    if "code" in found:
        if name in _shipped():
            raise UsageError(f"methods.{name} is a method of the suite: give yours another name")
        said: Entry = {"family": "DELTA", "source": found["code"], "trainable_rule": OPEN}
        with suppress(UsageError):  # told when the method is resolved, after the schema has spoken
            said |= described(*source_of(name, found))
        found = merge(said, found)
    return found


def first_problem(found: dict[str, Any], own: dict[str, Any] | None) -> str | None:
    """What the schema says of the entries of a table that `own` has written, or None.

    An entry is looked at before those that are like it, which have its faults too.
    """
    written = own or {}

    def depth(name: str) -> int:
        entry = written.get(name)
        return 1 + depth(entry["like"]) if isinstance(entry, dict) and "like" in entry else 0

    for name in sorted(written, key=depth):
        problem = first_error({name: found[name]}, "config", "methods")
        if problem and problem.startswith(str(name)):
            return f"methods.{problem}"
    return None


def _like(name: str, merged: dict[str, Any], children: tuple[str, ...]) -> Entry:
    entry = dict(merged[name])
    if "like" not in entry:
        return entry
    model = entry.pop("like")
    if not isinstance(model, str) or not isinstance(merged.get(model), dict):
        raise UsageError(
            f"methods.{name}.like is {model!r}; allowed is the name of another method: "
            f"{', '.join(sorted(map(str, set(merged) - {name})))}"
        )
    if model in (name, *children):
        raise UsageError(f"methods.{name} is like {model} and so itself, in the end: leave one out")
    found = _like(model, merged, (*children, name))
    taken = {key: value for key, value in found.items() if key not in PARTICULAR}
    return dict(merge(taken, entry))
