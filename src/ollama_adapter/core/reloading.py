"""What becomes of options that decide how a model is loaded, next to those it was loaded with; pure.

Ollama loads a model anew for whoever asks with other ones, and once more for the next, and nobody hears of
it. So every request is sent with the options that the model has, and what was asked for and not granted is
told; or it is refused; or the model is loaded anew on purpose. Options that mean the same are no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ollama_adapter.config import Reloading
from ollama_adapter.core.requests import Request
from ollama_adapter.core.vocabulary import COMMON, OPTIONS, RELOADING, check, unknown
from ollama_adapter.errors import InvalidRequest

LEAST_CONTEXT: Final = 4
USUAL: Final[Mapping[str, Any]] = {
    "shift": True,
    "num_batch": 512,
    "num_thread": 0,
    "num_gpu": -1,
    "main_gpu": 0,
}
"""What Ollama takes where nothing is said."""


class Held(msgspec.Struct, frozen=True):
    """How a model was loaded: with which options, which context it has (0: not known), and may have."""

    reloading: Mapping[str, Any]
    num_ctx: int = 0
    trained: int = 0

    def has(self, name: str, value: Any) -> bool:
        """Whether an option would change nothing."""
        if name in self.reloading and self.reloading[name] == value:
            return True
        if name == "num_ctx" and self.num_ctx:
            return self.context(value) == self.num_ctx
        return name in USUAL and bool(self.reloading.get(name, USUAL[name]) == value)

    def context(self, wanted: int) -> int:
        """As the daemon cuts it to what the model was trained for."""
        wanted = max(LEAST_CONTEXT, wanted)
        return min(wanted, self.trained) if self.trained else wanted

    def shown(self, name: str) -> str:
        """The option as the model has it, in words."""
        usual = self.num_ctx if name == "num_ctx" else USUAL.get(name)
        value = self.reloading.get(name, usual)
        return f"{name}={value}" if value is not None else f"the usual {name}"


class Settled(msgspec.Struct, frozen=True):
    """The options to send; `anew`: the model has to be loaded with them first; what was not granted."""

    reloading: Mapping[str, Any]
    anew: bool = False
    notes: tuple[str, ...] = ()


def check_options(reloading: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for one that does not decide how a model is loaded, or is ill-typed."""
    kinds = {name: OPTIONS[name] for name in RELOADING} | {"shift": COMMON["shift"]}
    for name, value in reloading.items():
        if name not in kinds:
            raise unknown("option of a load", name, kinds)
        check(name, kinds[name], value)


def settle(model: str, asked: Mapping[str, Any], held: Held, policy: Reloading) -> Settled:
    """What a request is sent with. Raises InvalidRequest where differences are refused."""
    other = {name: value for name, value in asked.items() if not held.has(name, value)}
    if not other:
        return Settled(held.reloading)
    if policy is Reloading.ALLOW:
        return Settled({**held.reloading, **other}, anew=True)
    wanted = ", ".join(f"{name}={value}" for name, value in other.items())
    has = ", ".join(map(held.shown, other))
    if policy is Reloading.REFUSE:
        raise InvalidRequest(
            f"{model} is in memory with {has}, and {wanted} would load it anew",
            hint='leave it out, load the model with it first, or set pool.reloading = "keep" or "allow"',
        )
    note = f"{wanted} was not used: {model} is in memory with {has}"
    return Settled(held.reloading, notes=(note,))


def readdress(
    request: Request, model: str, reloading: Mapping[str, Any], keep_alive: str | float
) -> Request:
    """The same request for `model`, with these options and this keep-alive; itself where nothing changes."""
    same = request.reloading == reloading and request.keep_alive == keep_alive
    if same and request.model == model:
        return request
    fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    given = msgspec.json.decode(fields.get("options", b"{}"), type=dict[str, Any] | None) or {}
    options = {name: value for name, value in given.items() if name not in RELOADING}
    options |= {name: value for name, value in reloading.items() if name in RELOADING}
    changed: dict[str, Any] = {"model": model, "keep_alive": keep_alive}
    if "shift" in reloading and request.path != "/api/embed":
        changed["shift"] = reloading["shift"]
    else:
        fields.pop("shift", None)
    if options:
        changed["options"] = options
    else:
        fields.pop("options", None)
    body = msgspec.json.encode({**fields, **changed})
    return replace(
        request, model=model, body=body, keep_alive=keep_alive, reloading=dict(reloading)
    )
