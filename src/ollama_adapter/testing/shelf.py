"""The models that a pretended daemon has, and what its listings say about them; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from ollama_adapter.core.names import ModelName, parse_name
from ollama_adapter.embedded.records import timestamp
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.errors import InvalidRequest
from ollama_adapter.testing.memory import Resident
from ollama_adapter.testing.model import HEAD_LENGTH, HEADS, LAYERS, WORDS, PretendModel

CLOUD_OFF: Final = "ollama cloud is disabled: remote model is unavailable"
DETAILS_OFF: Final = "ollama cloud is disabled: remote model details are unavailable"
REMOTE: Final = {"remote_model": "gpt-oss:20b", "remote_host": "https://ollama.com:443"}
TEMPLATE: Final = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
_FAR_NS: Final = 9_223_372_036_000_000_000
"""The year 2262; what never expires is shown so."""


def model_name(text: str, elsewhere: str = CLOUD_OFF) -> ModelName:
    """The name that a request says, refused as Ollama refuses it: `elsewhere` for one of its cloud."""
    try:
        name = parse_name(text)
    except InvalidRequest:
        raise ApiError(400, "invalid model name") from None
    if name.is_cloud:
        raise ApiError(403, elsewhere)
    return name


def long_name(text: str) -> str:
    """With all its parts."""
    name = model_name(text)
    return f"{name.host}/{name.namespace}/{name.model}:{name.tag}"


class Shelf:
    """Models by name; one model may have several."""

    def __init__(self, models: Iterable[PretendModel | str]) -> None:
        made = [PretendModel(each) if isinstance(each, str) else each for each in models]
        self._models = {parse_name(each.name).key: each for each in made}

    def find(self, text: str, missing: str, elsewhere: str = CLOUD_OFF) -> tuple[str, PretendModel]:
        """The full name and the model that `text` means; 404 with `missing` where there is none."""
        if not text:
            raise ApiError(404, missing)
        key = model_name(text, elsewhere).key
        if key not in self._models:
            raise ApiError(404, missing)
        return key, self._models[key]

    def copy(self, source: str, destination: str) -> None:
        for kind, name in (("source", source), ("destination", destination)):
            if not name:
                raise ApiError(400, f'{kind} "" is invalid')
        _, model = self.find(source, f'model "{source}" not found')
        self._models[model_name(destination).key] = model

    def delete(self, text: str) -> str:
        """Its full name."""
        if not text:
            raise ApiError(400, "model is required")
        name, _ = self.find(text, f"model '{text}' not found")
        del self._models[name]
        return name

    def tags(self, now_ns: int, *, remote: bool) -> dict[str, Any]:
        """The answer of /api/tags."""
        return {"models": [_tag(*each, now_ns, remote) for each in self._models.items()]}


def _tag(name: str, model: PretendModel, now_ns: int, remote: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "model": name} | (REMOTE if remote else {})
    details = _details(model) | {
        "context_length": model.context_length,
        "embedding_length": model.dimensions,
    }
    return entry | {
        "modified_at": timestamp(now_ns),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": details,
        "capabilities": list(model.capabilities),
    }


def _details(model: PretendModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": f"{max(1, model.size_bytes // 1_000_000)}M",
        "quantization_level": "Q8_0",
    }


def resident_entry(name: str, resident: Resident, epoch_offset_ns: int) -> dict[str, Any]:
    """One entry of /api/ps."""
    model = resident.model
    expires = resident.expires_ns
    return {
        "name": name,
        "model": name,
        "size": resident.ram + resident.vram,
        "digest": model.digest,
        "details": _details(model),
        "expires_at": timestamp(_FAR_NS if expires == math.inf else int(expires) + epoch_offset_ns),
        "size_vram": resident.vram,
        "context_length": resident.spec["num_ctx"],
    }


def shown(name: str, model: PretendModel, now_ns: int, *, remote: bool) -> dict[str, Any]:
    """The answer of /api/show."""
    numbers = {
        "context_length": model.context_length,
        "embedding_length": model.dimensions,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": HEAD_LENGTH,
        "attention.value_length": HEAD_LENGTH,
        "vocab_size": len(WORDS),
    }
    info = {
        "general.architecture": model.family,
        "general.parameter_count": model.size_bytes,
        **{f"{model.family}.{name}": value for name, value in numbers.items()},
    }
    answer = {
        "modelfile": f'# Modelfile generated by "ollama show"\nFROM {name}\n',
        "template": TEMPLATE,
        "details": _details(model),
        "model_info": info,
        "capabilities": list(model.capabilities),
        "modified_at": timestamp(now_ns),
    }
    return answer | (REMOTE if remote else {})
