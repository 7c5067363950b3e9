"""Native integration of the Ollama runtime for Python applications that run AI models locally.

    async with OllamaAdapter() as adapter:
        async for event in adapter.generate_stream("tinydoc", "What does len do?"):
            print(event.token, end="")

Errors are in `ollama_adapter.errors`, doubles for tests in `ollama_adapter.testing`.

A name is imported when it is first used; `__init__.pyi` says the same to type checkers.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BlockingAdapter",
    "Channel",
    "Config",
    "DaemonConfig",
    "DaemonMode",
    "Decipher",
    "EUMapper",
    "EnergyConfig",
    "Finish",
    "Frame",
    "FrameConfig",
    "Guarantee",
    "Health",
    "ModelPool",
    "OllamaAdapter",
    "Orchestrator",
    "PoolConfig",
    "Source",
    "State",
    "Statistics",
    "StreamConfig",
    "Tier",
    "TokenEvent",
    "TokenStream",
]

_HOMES = {
    "adapter": ("OllamaAdapter",),
    "blocking": ("BlockingAdapter",),
    "config": (
        "Config",
        "DaemonConfig",
        "DaemonMode",
        "EnergyConfig",
        "FrameConfig",
        "PoolConfig",
        "StreamConfig",
        "Tier",
    ),
    "core.energy": ("EUMapper",),
    "decipher": ("Decipher",),
    "events": (
        "Answer",
        "Channel",
        "Finish",
        "Frame",
        "Guarantee",
        "Health",
        "Source",
        "State",
        "Statistics",
        "TokenEvent",
    ),
    "orchestrator": ("Orchestrator",),
    "pool": ("ModelPool",),
    "stream": ("TokenStream",),
}
_MODULES = ("errors", "testing")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return _import_module(f"{__name__}.{name}")
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(_import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
