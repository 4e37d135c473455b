"""Write the CycloneDX SBOM of a Python environment and of the Debian packages around it.

python containers/sbom.py PYTHON FILE, run by an environment that has containers/sbom.lock.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

FIELDS = "${Package}\t${Version}\t${Architecture}\n"


def python_packages(python: str) -> dict[str, Any]:
    """The SBOM of what is installed beside `python`, without times and random numbers."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    command = [tool, "environment", "--output-reproducible", "--short-PURLs", python]
    document: dict[str, Any] = json.loads(subprocess.check_output(command))
    return document


def debian_packages() -> list[dict[str, str]]:
    """A component for each package that dpkg has installed."""
    listed = subprocess.check_output(["dpkg-query", "--show", f"--showformat={FIELDS}"], text=True)
    system = platform.freedesktop_os_release()["ID"]
    found = []
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        purl = f"pkg:deb/{system}/{name}@{quote(version, safe='')}?arch={architecture}"
        component = {"type": "library", "name": name, "version": version}
        found.append(component | {"bom-ref": purl, "purl": purl})
    return found


if __name__ == "__main__":
    sbom = python_packages(sys.argv[1])
    sbom["components"] += debian_packages()
    Path(sys.argv[2]).write_text(json.dumps(sbom, indent=1) + "\n")
