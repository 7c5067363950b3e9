"""From how a download failed to an error that says what to do. The kinds are those of puller/fetching.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ollama_adapter.errors import AdapterError, PullFailed, PullRefused

RESUMES: Final = "what has come is kept: pull again, and it goes on from there"
ANEW: Final = "nothing of it has come: pull again, at another time if need be"
_WORDS: Final[Mapping[str, str]] = {
    "status 404": "{host} has no model {model}",
    "disk": "the disk does not take it: {reason}",
    "untrusted": "{host} cannot prove who it is: {reason}",
    "stalled": "{host} has fallen silent: {reason}",
}
_HINTS: Final[Mapping[str, str]] = {
    "status 404": "look at its spelling, and at its tag; the registry's web site lists what there is",
    "status 401": "it is private, or does not exist: only public models can be pulled",
    "disk": "free some space",
    "untrusted": "something stands between you and the registry",
}
_FINAL: Final = ("status 401", "status 404")  # to pull again is of no use


def trust_hint(host: str) -> str:
    """How a host is allowed."""
    return f"if you trust it, add {host} to pool.registries, or allow it once with also_from"


def pull_error(
    kind: str, reason: str, *, host: str, model: str, refused: str = "", begun: bool = True
) -> AdapterError:
    """`host` is the registry; `refused` the host that it has sent us to, where that was not allowed.

    `begun`: a part of the model is here.
    """
    if kind == "refused":
        return PullRefused(
            f"{host} sends us to {refused or reason}, from which models may not be pulled here",
            hint=trust_hint(refused or reason),
        )
    words = _WORDS.get(kind, "{host} does not deliver {model}: {reason}")
    parts = [_HINTS.get(kind, ""), RESUMES if begun else ANEW]
    hint = parts[0] if kind in _FINAL else "; ".join(filter(None, parts))
    return PullFailed(words.format(host=host, model=model, reason=reason), hint=hint)
