"""Model names: `[host/][namespace/]model[:tag]`, matched without regard to case.

A tag `cloud`, or one that ends in `-cloud`, makes Ollama send the prompt to another machine by the
name alone, whatever the disk holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from ollama_adapter.errors import InvalidRequest, RemoteModelRefused

DEFAULT_HOST: Final = "registry.ollama.ai"
DEFAULT_NAMESPACE: Final = "library"
DEFAULT_TAG: Final = "latest"
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class ModelName(msgspec.Struct, frozen=True):
    """A name with every part filled in."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        """The shortest form that means the same, always with its tag: `llama3:latest`."""
        prefix = ""
        if self.host.lower() != DEFAULT_HOST:
            prefix = f"{self.host}/{self.namespace}/"
        elif self.namespace.lower() != DEFAULT_NAMESPACE:
            prefix = f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """Equal for names that mean the same model."""
        return str(self).lower()

    @property
    def is_cloud(self) -> bool:
        tag = self.tag.lower()
        return tag == "cloud" or tag.endswith("-cloud")


def parse_name(text: str) -> ModelName:
    """The parts of `text`; InvalidRequest when it is no model name."""
    *prefix, last = text.split("/")
    model, colon, tag = last.partition(":")
    if not colon:
        tag = DEFAULT_TAG
    host, namespace = ([DEFAULT_HOST, DEFAULT_NAMESPACE][: 2 - len(prefix)] + prefix)[:2]
    parts_fit = all(_PART.fullmatch(part) for part in (namespace, model, tag))
    if len(prefix) > 2 or not parts_fit or not _HOST.fullmatch(host):
        raise InvalidRequest(
            "the model name cannot be used" if text else "no model was named",
            hint="write name or name:tag, for example tinydoc or llama3.2:1b",
        )
    return ModelName(host, namespace, model, tag)


def key_of(name: object) -> str:
    """The key of a name that somebody else gave; "" where it is none."""
    try:
        return parse_name(name if isinstance(name, str) else "").key
    except InvalidRequest:
        return ""


def is_tinydoc(text: str) -> bool:
    """The bundled model's own name, whatever its tag; False for what is no name."""
    try:
        return parse_name(text).model.lower() == "tinydoc"
    except InvalidRequest:
        return False


def local_name(text: str) -> ModelName:
    """As parse_name; RemoteModelRefused for a name that Ollama would send to its cloud."""
    name = parse_name(text)
    if name.is_cloud:
        raise RemoteModelRefused(
            f"{name} runs in a cloud, and prompts do not leave this machine",
            status=403,
            model=str(name),
            hint=f"use a local model; `ollama-adapter models` lists them "
            f"(a local model with that tag can be copied to another name: {name.model})",
        )
    return name


@lru_cache(maxsize=4096)
def local_key(text: str) -> str:
    """The key of local_name(text), which raises as that does; kept, since every request asks for it."""
    return local_name(text).key


def weights_of(shown: Mapping[str, Any]) -> str:
    """The name of the file that holds a model, from what /api/show says; "" where it does not say."""
    for line in str(shown.get("modelfile", "")).splitlines():
        word, _, path = line.partition(" ")
        if word == "FROM":
            return path.strip().replace("\\", "/").rpartition("/")[2]
    return ""
