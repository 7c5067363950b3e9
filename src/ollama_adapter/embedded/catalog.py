"""What /api/tags, /api/show and /api/ps say about a model: pure, from its manifest and GGUF header."""

from __future__ import annotations

from typing import Any, Final

from ollama_adapter.core import gguf
from ollama_adapter.core.footprint import Facts, facts_of, need
from ollama_adapter.embedded.records import timestamp
from ollama_adapter.embedded.scheduler import Loaded
from ollama_adapter.embedded.store import TINYDOC_NOTE, Model

_LONG_TEXT: Final = 1 << 16


def details(model: Model, header: gguf.Header | None) -> dict[str, Any]:
    """The `details` object; from the config alone where the weights cannot be read."""
    config = model.config
    family = header.architecture if header else str(config.get("model_family", ""))
    families = [family] if header else config.get("model_families")
    if model.bundled:
        families = [family, "demonstration"]
    size = gguf.human_count(header.parameters) if header else str(config.get("model_type", ""))
    return {
        "parent_model": str(config.get("parent_model", "")),
        "format": "gguf" if header else str(config.get("model_format", "")),
        "family": family,
        "families": families,
        "parameter_size": size,
        "quantization_level": header.file_type if header else str(config.get("file_type", "")),
    }


def capabilities(header: gguf.Header | None) -> list[str]:
    """What the model can be asked for."""
    if header is None:
        return []
    if header.number("pooling_type"):
        return ["embedding"]
    return ["completion", "tools"] if "tools" in _template(header) else ["completion"]


def _template(header: gguf.Header) -> str:
    return header.text("tokenizer.chat_template")


def tag(model: Model, header: gguf.Header | None) -> dict[str, Any]:
    """One entry of /api/tags."""
    name = str(model.name)
    entry: dict[str, Any] = {"name": name, "model": name}
    for key in ("remote_model", "remote_host"):
        if model.config.get(key):
            entry[key] = model.config[key]
    about = details(model, header)
    if header is not None:
        about["context_length"] = header.number("context_length")
        about["embedding_length"] = header.number("embedding_length")
    entry |= {
        "modified_at": timestamp(int(model.modified * 1e9)),
        "size": model.size,
        "digest": model.digest,
        "details": about,
        "capabilities": capabilities(header),
    }
    if model.bundled:
        entry["details"]["note"] = TINYDOC_NOTE
    return entry


def resident(loaded: Loaded, header: gguf.Header) -> dict[str, Any]:
    """One entry of /api/ps. `size` is the most that the runner takes: an estimate, for we see no process."""
    spec = loaded.spec
    name = str(loaded.model.name)
    needed = need(facts(loaded.model, header), spec.n_ctx, spec.parallel, batch=spec.n_batch)
    return {
        "name": name,
        "model": name,
        "size": needed.total,
        "digest": loaded.model.digest,
        "details": details(loaded.model, header),
        "expires_at": timestamp(int(loaded.expires * 1e9)),
        "size_vram": 0,
        "context_length": spec.n_ctx,
    }


def facts(model: Model, header: gguf.Header) -> Facts:
    """What decides how much memory the model takes; more of it than /api/show has room for."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    info = {**header.metadata, "general.parameter_count": header.parameters}
    if isinstance(tokens, gguf.Array):
        info[f"{header.architecture}.vocab_size"] = tokens.count
    return facts_of(tag(model, header), {"model_info": info})


def parameters_text(parameters: dict[str, Any]) -> str:
    """Options as lines of a Modelfile."""
    lines = []
    for name, value in parameters.items():
        for each in value if isinstance(value, list) else [value]:
            shown = f'"{each}"' if isinstance(each, str) else each
            lines.append(f"{name:<30} {shown}")
    return "\n".join(lines)


def show(model: Model, header: gguf.Header, data: gguf.Buffer, *, verbose: bool) -> dict[str, Any]:
    """The answer of /api/show. Long arrays of the header are null unless `verbose`."""
    template = model.text("template") or _template(header)
    system = model.text("system")
    parameters = model.parameters()
    answer: dict[str, Any] = {
        "license": "\n".join(([TINYDOC_NOTE] if model.bundled else []) + model.licenses()),
        "modelfile": _modelfile(model, template, system, parameters),
        "parameters": parameters_text(parameters),
        "template": template,
        "system": system,
        "details": details(model, header),
        "messages": model.messages(),
        "model_info": _model_info(header, data, verbose=verbose),
        "tensors": [
            {"name": each.name, "type": each.type_name, "shape": list(each.shape)}
            for each in header.tensors
        ],
        "capabilities": capabilities(header),
        "modified_at": timestamp(int(model.modified * 1e9)),
    }
    if model.bundled:
        answer["details"]["note"] = TINYDOC_NOTE
    optional = ("license", "parameters", "system", "messages")
    return {key: value for key, value in answer.items() if value or key not in optional}


def _modelfile(model: Model, template: str, system: str, parameters: dict[str, Any]) -> str:
    lines = ['# Modelfile generated by "ollama show"']
    if model.bundled:
        lines.append(f"# {TINYDOC_NOTE}")
    lines += [
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name}",
        "",
        f"FROM {model.weights or ''}",
        f"TEMPLATE {_quoted(template)}",
    ]
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    for name, value in parameters.items():
        for each in value if isinstance(value, list) else [value]:
            lines.append(f"PARAMETER {name} {each}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else text


def _model_info(header: gguf.Header, data: gguf.Buffer, *, verbose: bool) -> dict[str, Any]:
    info: dict[str, Any] = {"general.parameter_count": header.parameters}
    for key, value in header.metadata.items():
        if key == "tokenizer.chat_template" or (isinstance(value, str) and len(value) > _LONG_TEXT):
            continue
        long = isinstance(value, gguf.Array | list) and key.startswith("tokenizer.")
        if isinstance(value, gguf.Array):
            value = gguf.elements(data, value) if verbose else None
        info[key] = None if long and not verbose else value
    return info
