"""What the stages hand to each other: JSON files, written whole or not at all, with a schema."""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lorasp import __version__
from lorasp.errors import WorkError

SCHEMAS = Path(__file__).parent / "schemas"
PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers"),
    *("safetensors", "sacrebleu", "rouge-score", "scikit-learn", "scipy", "lm-eval", "numpy"),
)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON-like value, the same for equal values whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; it becomes `path` if the block succeeds.

    Raises WorkError, naming the file, when the disk refuses; nothing half-written stays behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private; results are for everybody
        with temporary.open() as file:
            os.fsync(file.fileno())  # or a machine that goes down could leave an empty result
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def forget_results(folder: Path) -> None:
    """Remove what was said of a run that is to be replaced, so that no file speaks of another.

    The later result goes first: whoever reads between finds no score without its training.
    """
    for name in ("metrics.json", "train.json"):
        (folder / name).unlink(missing_ok=True)


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """The published JSON schema of a kind of file: config, manifest, train, metrics, profile."""
    document: dict[str, Any] = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    return document


def first_error(value: Any, kind: str, key: str | None = None) -> str | None:
    """The first violation of a schema as 'key: what was found and what is allowed', or None.

    With `key` the value is only what such a document has under it.
    """
    rules = schema(kind)
    if key is not None:
        rules = {"$defs": rules["$defs"], **rules["properties"][key]}
    validator = jsonschema.Draft202012Validator(rules)
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if error is None:
        return None
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    match error.validator:
        case "additionalProperties":
            allowed = ", ".join(sorted(error.schema["properties"]))
            return f"{where}: {error.message}; allowed are {allowed}"
        case "pattern" if "description" in error.schema:
            return f"{where}: found {error.instance!r}; allowed is {error.schema['description']}"
        case "not":
            meant = error.validator_value.get("description", error.message)
            return f"{where}: found {error.instance!r}, which is taken: {meant}"
    return f"{where}: {error.message}"


def write_json(path: Path, value: dict[str, Any], kind: str) -> None:
    """Write a result of a kind, validated, through a temporary name.

    Raises WorkError where the value breaks its schema or the disk refuses.
    """
    document = {"schema": 1, "kind": kind, **value}
    if problem := first_error(document, kind):
        raise WorkError(f"refusing to write {path}: not a valid {kind} file: {problem}")
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read and validate a result of a kind; WorkError names the file and what is wrong with it."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise WorkError(
            f"{path} is not JSON ({error}); delete it and run the stage again"
        ) from error
    if problem := first_error(document, kind):
        raise WorkError(f"{path} is not a valid {kind} file ({problem}); run its stage again")
    return document


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, by libyaml where PyYAML was built with it: ten times as fast."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; WorkError where it cannot be read or is no mapping."""
    try:
        document = parse_yaml(path.read_text())
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise WorkError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise WorkError(f"{path} must hold a YAML mapping, not {type(document).__name__}")
    return document


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # installed, maybe inside another project's checkout
        return None
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def provenance() -> dict[str, Any]:
    """Code, packages and machine that made a result: commit, versions, CPU, GPUs, threads."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {
        "lorasp": __version__,
        "git": {"commit": commit, "dirty": dirty},
        "versions": versions,
        "python": platform.python_version(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpu": processor(),
            "cores": os.cpu_count(),
            "gpus": _gpus(),
        },
    }


def processor() -> str:
    """The name of the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
