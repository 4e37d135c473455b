"""The classes of methods that are not the suite's: imported when a run needs them, and checked."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from lorasp.adapters.delta import Delta, offer
from lorasp.errors import UsageError
from lorasp.plugins import point_of, source_of, told
from lorasp.results import sha256_of


def load(method: dict[str, Any]) -> str:
    """Import the class that a resolved method's `code` or `entry_point` names; its family.

    A `Delta` is offered to PEFT under the method's name, of the family DELTA; a PEFT configuration
    has registered itself. Only a configuration of the suite, or an installed package, names code:
    an adapter's file never does.

    Raises UsageError, with file and line, where the file or the class does not do.
    """
    name = method["name"]
    found = _class_of(method)
    if isinstance(found, type) and issubclass(found, Delta) and found is not Delta:
        if found.forward is Delta.forward:
            raise UsageError(
                f"methods.{name}: {found.__name__} has no forward(self, weight); write one that "
                "returns the adapted weight, a tensor of the same shape"
            )
        offer(name, found)
        return "DELTA"
    if not (isinstance(found, type) and issubclass(found, PeftConfig)):
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise UsageError(
            f"methods.{name}: {kind} is no method; allowed is a subclass of lorasp.Delta, or of "
            "peft.PeftConfig that has registered itself with PEFT"
        )
    for family, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if config_class is found:
            return str(getattr(family, "value", family))
    raise UsageError(
        f"methods.{name}: {found.__name__} is not registered with PEFT; its module has to put it "
        "and its model into the tables of peft.mapping"
    )


def _class_of(method: dict[str, Any]) -> Any:
    name = method["name"]
    if "entry_point" in method:
        point = point_of(method["entry_point"])
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            where = f"methods.{name}: {point.value} cannot be imported"
            raise UsageError(f"{where}: {told(error)}") from error
    file, class_name = source_of(name, method)
    module = _module(name, file)
    if not hasattr(module, class_name):
        classes = [key for key, value in vars(module).items() if _is_own(value, module)]
        raise UsageError(
            f"methods.{name}.code: {file} has no class {class_name}; it has "
            f"{', '.join(sorted(classes)) or 'none'}"
        )
    return getattr(module, class_name)


def _module(name: str, file: Path) -> ModuleType:
    """The file as a module under a private name, the same one for the same content."""
    private = f"_lorasp_own_{sha256_of(file)[:32]}"
    if private in sys.modules:
        return sys.modules[private]
    spec: Any = spec_from_file_location(private, file)
    module = module_from_spec(spec)
    sys.modules[private] = module  # dataclasses look there for the types of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[private]
        raise UsageError(f"methods.{name}.code: {told(error, file)}") from error
    return module


def _is_own(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__
