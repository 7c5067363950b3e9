"""From TOML, text and whatever a caller writes, to the fields of a dataclass, each in its type.

What does not fit is a ConfigError that names the setting.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from ollama_adapter.errors import ConfigError


def typed(slice_: Any) -> None:
    """Who builds a Config in Python may err in a type, or write "low", as well as who writes a file."""
    for name, target in _hints(type(slice_)).items():
        value = convert(target, getattr(slice_, name), full_name(slice_, name))
        object.__setattr__(slice_, name, value)


_SECTIONS: Final[Mapping[str, str]] = {
    "DaemonConfig": "daemon.",
    "PoolConfig": "pool.",
    "StreamConfig": "stream.",
    "EnergyConfig": "energy.",
    "FrameConfig": "frames.",
}


def full_name(slice_: object, name: str) -> str:
    """A setting as it is written: with its section."""
    return _SECTIONS.get(type(slice_).__name__, "") + name


_TRUTH: Final[Mapping[str, bool]] = {"true": True, "1": True, "false": False, "0": False}
_WORDS: Final[Mapping[type[Any], str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    types.NoneType: "or leave it out",
}
_HINTS: dict[type[Any], Mapping[str, Any]] = {}


def _hints(kind: type[Any]) -> Mapping[str, Any]:
    """Looked up once: they are compiled from text, which takes as long as all the rest of a Config."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def positive(slice_: object, *names: str, hint: str = "") -> None:
    for name in names:
        value = getattr(slice_, name)
        if not value > 0:
            where = full_name(slice_, name)
            raise ConfigError(f"{where} is {value}, and must be above 0", hint=hint)


def not_negative(slice_: object, *names: str) -> None:
    for name in names:
        value = getattr(slice_, name)
        if not value >= 0:
            where = full_name(slice_, name)
            raise ConfigError(f"{where} is {value}, and must not be negative")


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for step in path[:-1]:
        tree = tree.setdefault(step, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"[{step}] in the settings file must be a table")
    tree[path[-1]] = value


def build(kind: type[Any], tree: Mapping[str, Any], path: tuple[str, ...]) -> object:
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for name, value in tree.items():
        where = ".".join((*path, name))
        if name not in hints:
            raise ConfigError(
                f"there is no setting {where}", hint=f"here one can set: {', '.join(sorted(hints))}"
            )
        target = hints[name]
        if dataclasses.is_dataclass(target):
            if not isinstance(value, Mapping):
                raise ConfigError(f"[{where}] must be a table")
            values[name] = build(typing.cast("type[Any]", target), value, (*path, name))
        else:
            values[name] = convert(target, value, where)
    return kind(**values)


def convert(target: Any, value: Any, where: str) -> Any:
    """`value`, from TOML or as an environment's text, as `target`."""
    if typing.get_origin(target) is tuple:
        return _convert_all(typing.get_args(target)[0], value, where)
    options: tuple[type[Any], ...] = (target,)
    if isinstance(target, types.UnionType):
        options = typing.get_args(target)
    for option in options:
        if isinstance(value, option) and not (isinstance(value, bool) and option is not bool):
            return value
    if bool in options and isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    for option in options:
        written = isinstance(value, str) and (option in (int, float) or issubclass(option, StrEnum))
        whole = option is float and isinstance(value, int) and not isinstance(value, bool)
        if written or whole:
            try:
                return option(value)
            except (ValueError, OverflowError):
                continue
    raise ConfigError(f"{where} cannot be {value!r}", hint=_expectation(options))


def _convert_all(target: Any, value: Any, where: str) -> tuple[Any, ...]:
    """A list, or in the environment words with commas between them."""
    if isinstance(value, str):
        value = [each.strip() for each in value.split(",") if each.strip()]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} cannot be {value!r}", hint="expected: a list")
    return tuple(convert(target, each, where) for each in value)


def _expectation(options: tuple[type[Any], ...]) -> str:
    words: list[str] = []
    for option in options:
        if issubclass(option, StrEnum):
            words += [each.value for each in option]
        else:
            words.append(_WORDS.get(option, option.__name__))
    return f"expected: {', '.join(words)}"
