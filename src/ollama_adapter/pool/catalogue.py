"""What the daemon says of the models on its disk, asked once per model and daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_adapter.client import OllamaClient
from ollama_adapter.core.failures import remote_refused
from ollama_adapter.core.footprint import Facts, facts_of
from ollama_adapter.core.names import key_of
from ollama_adapter.errors import ProtocolError, ReadTimeout, ResponseError


class Catalogue:
    """By the keys of the models. The digests outlive a daemon: by them answers in memory are found."""

    def __init__(self, client: OllamaClient) -> None:
        self._client = client
        self._shown: dict[str, dict[str, Any]] = {}
        self._tags: dict[str, Mapping[str, Any]] = {}
        self._digests: dict[str, str] = {}
        self._forgotten = 0

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self._shown)} models>"

    def known(self, key: str) -> Mapping[str, Any]:
        """What /api/show has said; nothing where it was not asked."""
        return self._shown.get(key, {})

    def digest(self, key: str) -> str:
        """As it was last seen; "" for a model that was not."""
        return self._digests.get(key, "")

    def facts(self, key: str) -> Facts:
        """What is known of its size and make."""
        tag = self._tags.get(key, {"name": key, "digest": self.digest(key)})
        return facts_of(tag, self._shown.get(key))

    def embeds(self, key: str) -> bool:
        return "embedding" in self._shown.get(key, {}).get("capabilities", ())

    def usual_context(self, key: str) -> int:
        """The num_ctx that its Modelfile says; 0 where it says none."""
        for line in str(self._shown.get(key, {}).get("parameters", "")).splitlines():
            name, _, value = line.strip().partition(" ")
            if name == "num_ctx" and value.strip().isascii() and value.strip().isdigit():
                return int(value)
        return 0

    def forget(self, key: str | None = None) -> None:
        """One model may have gone, or all of them may be others."""
        self._forgotten += 1
        if key is None:
            self._shown.clear()
            self._tags.clear()
        else:
            self._shown.pop(key, None)

    async def describe(self, model: str, key: str) -> dict[str, Any]:
        """What /api/show says. Raises ModelNotFound, RemoteModelRefused. Cancelling is safe."""
        while key not in self._shown:
            asked = self._forgotten
            shown = await self._client.show(model)
            if shown.get("remote_host") or shown.get("remote_model"):
                raise remote_refused(model)
            await self._see_tags(key)
            if asked == self._forgotten:  # else it is old
                self._shown[key] = shown
        return self._shown[key]

    async def _see_tags(self, key: str) -> None:
        """A model of the same name may be another one since the last daemon."""
        try:
            listed = await self._client.tags()
        except (ResponseError, ProtocolError, ReadTimeout):  # then nothing of it is kept in memory
            listed = []
        self._tags = {key_of(each.get("name")): each for each in listed}
        self._digests[key] = str(self._tags.get(key, {}).get("digest", ""))
