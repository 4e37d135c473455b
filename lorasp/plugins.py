"""Methods that are not the suite's: where their classes are, and what their source says of them.

Nothing is imported here: a table of methods is read often, and must not wait for torch, nor run
somebody's code. `lorasp.adapters.own` imports a class when a run needs it.
"""

import ast
import json
import re
import traceback
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorasp.errors import UsageError
from lorasp.results import fingerprint, first_error, schema, sha256_of

GROUP = "lorasp.methods"
# What a class may say of its method by class attributes; they are keys of an entry of the table.
SAID = (
    *("label", "trainable_rule", "size", "applies_to", "because"),
    *("interpretation", "starts_at_base", "keeps_base", "merges", "seeded", "limits"),
)
# The arguments of a Delta's constructor that are no settings: self, and the shape and generator.
GIVEN = 4
Entry = dict[str, Any]


def installed() -> dict[str, Entry]:
    """The methods that installed packages offer by entry points, by name; none is imported.

    What is wrong with a class is told when it is loaded. What no table could hold is left out, and
    `left_out` tells it: one package hurts no other.
    """
    found = {}
    for point in entry_points(group=GROUP):
        with suppress(UsageError):
            found[point.name] = _entry_of(point)
    return found


def _entry_of(point: EntryPoint) -> Entry:
    """What an entry point and its class say; UsageError for what the schema of methods refuses."""
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package"
    entry = {
        "family": "DELTA",
        "group": "own",
        "label": point.name[:80],
        "entry_point": point.name,
        "source": f"{point.value}, of {package}",
        "trainable_rule": f"what {point.value} makes a parameter",
    }
    try:
        with suppress(UsageError):
            entry |= described(*source_of(point.name, entry))
        problem = first_error({point.name: entry}, "config", "methods")
    except Exception as error:  # of whatever a stranger's package holds
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise UsageError(
            f"the entry point {point.name} ({point.value}, of {package}) is left out: {problem}; "
            "its author has to mend it"
        )
    return entry


def is_own(entry: Entry) -> bool:
    """Whether an entry's class is not the suite's."""
    return "code" in entry or "entry_point" in entry


def left_out(methods: dict[str, Entry]) -> list[str]:
    """A sentence for each entry point that is not in a table of methods, or not under its name."""
    found = []
    for point in entry_points(group=GROUP):
        if point.name in methods and not is_own(methods[point.name]):
            found.append(
                f"the entry point {point.name} ({point.value}) is left out: {point.name} is a "
                "method of the suite; its author has to choose another name"
            )
            continue
        try:
            _entry_of(point)
        except UsageError as error:
            found.append(str(error))
    return found


def point_of(name: str) -> EntryPoint:
    """The entry point of that name; UsageError where there is none, or several packages have it."""
    points = entry_points(group=GROUP, name=name)
    if len(points) == 1:
        (point,) = points
        if point.pattern.match(point.value) is None:
            raise UsageError(
                f"method {name!r} is offered as {point.value!r}; allowed is MODULE:CLASS: its "
                "author has to mend it"
            )
        return point
    if not points:
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
        raise UsageError(
            f"no installed package offers a method {name!r} (entry points of the group {GROUP}: "
            f"{known}); install the package that has it"
        )
    several = " and ".join(sorted(point.dist.name if point.dist else "?" for point in points))
    raise UsageError(f"method {name!r} is offered by {several}: uninstall all of them but one")


def source_of(name: str, entry: Entry) -> tuple[Path, str]:
    """The file and the class that an entry's `code` or `entry_point` names.

    Raises UsageError where there is no such file, or the path leaves the project.
    """
    if "code" in entry:
        place, _, class_name = str(entry["code"]).rpartition(":")
        inside = schema("config")["$defs"]["inside"]
        if not re.search(inside["pattern"], place) or not class_name.isidentifier():
            raise UsageError(
                f"methods.{name}.code is {entry['code']!r}; allowed is FILE.py:CLASS, with FILE "
                f"{inside['description']}"
            )
        if not Path(place).is_file():
            raise UsageError(
                f"methods.{name}: its code names {place}, and there is no such file; write it, or "
                "correct `code`, its own or that of the method it is like"
            )
        return Path(place), class_name
    point = point_of(entry["entry_point"])
    file = _module_file(point.module)
    if file is None:
        raise UsageError(f"methods.{name}: {point.value} is in no module that can be found")
    return file, point.attr


def code_digest(name: str, entry: Entry) -> dict[str, str]:
    """`code_sha256` of an entry's own code; nothing for a method of the suite.

    Of `code` that is the file, and of a package its version and all its Python files: those that
    its distribution lists, and those below the folder of its module, where it is installed in
    place. Raises UsageError for a `code` without its file; a package without is told when it is
    loaded.
    """
    if "code" in entry:
        return {"code_sha256": sha256_of(source_of(name, entry)[0])}
    if "entry_point" in entry:
        with suppress(UsageError):
            return {"code_sha256": _package_digest(point_of(entry["entry_point"]))}
    return {}


def _package_digest(point: EntryPoint) -> str:
    distribution = point.dist
    listed = (distribution.files if distribution else None) or []
    files = {Path(str(distribution.locate_file(file))) for file in listed if distribution}
    place = _module_file(point.module.partition(".")[0])
    if place is not None:
        files |= set(place.parent.rglob("*.py")) if place.name == "__init__.py" else {place}
    found = {sha256_of(file) for file in files if file.suffix == ".py" and file.is_file()}
    return fingerprint([distribution.version if distribution else None, sorted(found)])


def _module_file(module: str) -> Path | None:
    """The file of a module, found without importing the packages around it."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # such as __main__, which is in no file
        return None
    if spec is None or (not rest and not spec.origin):
        return None
    if not rest:
        return Path(str(spec.origin))
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def described(file: Path, class_name: str) -> Entry:
    """What a class says of itself, read from its file: keys of an entry of the table.

    `source` is the docstring's first line, `settings` are the constructor's defaults, and the rest
    are class attributes of those names; what is no literal value is left out. A file that cannot be
    read, or has no such class at its top, says nothing: it fails when it is imported.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found = next((node for node in classes if node.name == class_name), None)
    if found is None:
        return {}
    said = {
        target.id: value
        for node in found.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in SAID
        for value in _literal(node.value)
    }
    first = (ast.get_docstring(found) or "").partition("\n")[0].strip()
    return {
        **({"source": first} if first else {}),
        "trainable_rule": f"what {class_name} makes a parameter",
        **said,
        "settings": _defaults(found),
    }


def _defaults(found: ast.ClassDef) -> dict[str, Any]:
    """The settings that the constructor of a Delta takes, with their default values."""
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            named = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            late = zip(reversed(named), reversed(node.args.defaults), strict=False)
            only = zip(
                (argument.arg for argument in node.args.kwonlyargs),
                node.args.kw_defaults,
                strict=True,
            )
            pairs = [(name, value) for name, value in late if name not in named[:GIVEN]]
            pairs = [*reversed(pairs), *((n, v) for n, v in only if v is not None)]
            return {name: value for name, node in pairs for value in _literal(node)}
    return {}


def _literal(node: ast.expr) -> list[Any]:
    """The value of a literal that JSON has, alone in a list; nothing for any other expression."""
    try:
        return [json.loads(json.dumps(ast.literal_eval(node)))]
    except (ValueError, TypeError):
        return []


def told_of(method: Entry, error: BaseException) -> str:
    """What `told` says, of the place in a resolved method's own file where there is one."""
    file = None
    if is_own(method):
        with suppress(UsageError):
            file, _ = source_of(method["name"], method)
    return told(error, file)


def told(error: BaseException, file: Path | None = None) -> str:
    """The last line of an error's traceback, after its place: that in `file`, if it has one."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if file and Path(f.filename).resolve() == file.resolve()]
    frame = (inside or list(frames))[-1]
    last = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"{frame.filename}, line {frame.lineno}: {last}"
