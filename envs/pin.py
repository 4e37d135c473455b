"""Pin the conda files anew from requirements.lock: python envs/pin.py, with the lock installed.

Above the line `# and what these need` a file names what its stage imports, which is ours to say.
The rest is worked out here, so that pip has nothing left to choose.
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
REST = "      # and what these need\n"


def needed(names: set[str]) -> set[str]:
    """The packages, by canonical name, that these bring with them on this machine."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        asked = todo.pop()
        extras = frozenset(asked.extras) or frozenset({""})
        if (key := (canonicalize_name(asked.name), extras)) in seen:
            continue
        seen.add(key)
        for wanted in map(Requirement, metadata.requires(asked.name) or []):
            if not wanted.marker or any(wanted.marker.evaluate({"extra": one}) for one in extras):
                todo.append(wanted)
    return {name for name, _ in seen} - {canonicalize_name(name) for name in names}


def pinned(text: str, pins: dict[str, str]) -> str:
    """The file with every package of its stage at the version of the lock.

    torch pins the CUDA libraries that it brings on other machines; they are in no lock.
    """
    own, _, _ = text.partition(REST)
    head, names = own[: own.index("      - ")], re.findall("      - ([^=\n]+)", own)
    rest = needed(set(names)) & set(pins)
    first, second = (
        "".join(f"      - {pins[name]}\n" for name in sorted(map(canonicalize_name, part)))
        for part in (names, rest)
    )
    return head + first + REST + second


if __name__ == "__main__":
    lock = (HERE.parent / "requirements.lock").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]): line for line in lock if line[0] != "#"}
    for file in sorted(HERE.glob("*.yaml")):
        file.write_text(pinned(file.read_text(), pins))
