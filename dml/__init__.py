"""Deep metric learning: train image encoders for retrieval, evaluate them exactly, export them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dml.bundle import load_encoder, push_to_hub

__version__ = "0.1.0"
__all__ = ["load_encoder", "push_to_hub"]


def __getattr__(name: str) -> Any:
    """Import torch and timm only for those who use an encoder; `import dml` alone is quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("dml.bundle"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
