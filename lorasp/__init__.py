"""LoRA-SP (arXiv 2403.08822) as a PEFT method, and the suite that reproduces its paper."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Delta", "LoraSpConfig", "__version__"]

if TYPE_CHECKING:
    from lorasp.adapters import Delta, LoraSpConfig


def __getattr__(name: str) -> Any:
    # PEFT takes seconds to import, and most commands never need it.
    if name in ("Delta", "LoraSpConfig"):
        import lorasp.adapters

        return getattr(lorasp.adapters, name)
    raise AttributeError(f"module 'lorasp' has no attribute {name!r}")
