"""What the environment asks of the daemon, and how a model is to be loaded and sampled: pure.

Every sampling value is sent to the engine, since its defaults are not Ollama's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.core import gguf
from ollama_adapter.embedded.child import Spec
from ollama_adapter.embedded.scheduler import Limits
from ollama_adapter.embedded.values import FOREVER, ApiError, parse_keep_alive

DEFAULT_CONTEXT: Final = 4096
DEFAULT_BATCH: Final = 128  # small: an abort is felt between two batches of a prompt
SAMPLING: Final[dict[str, Any]] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": [],
}
_RANDOM_SEED: Final = 0xFFFFFFFF


class Settings(msgspec.Struct, frozen=True):
    """The daemon's environment, read once."""

    limits: Limits = msgspec.field(default_factory=Limits)
    context: int = DEFAULT_CONTEXT
    parallel: int = 1
    origins: tuple[str, ...] = ()

    @classmethod
    def parse(cls, env: Mapping[str, str]) -> Settings:
        """Ollama's variables; a malformed one means its default, as for Ollama."""

        def text(name: str) -> str:
            return env.get(name, "").strip().strip("\"'")

        def number(name: str, default: int) -> int:
            value = text(name)
            return int(value) if value.isascii() and value.isdigit() and int(value) else default

        def seconds(name: str, default: float) -> float:
            value = text(name)
            try:
                number = value.lstrip("+-").isdigit()
                return parse_keep_alive(int(value) if number else value) if value else default
            except ApiError:
                return default

        return cls(
            limits=Limits(
                max_loaded=number("OLLAMA_MAX_LOADED_MODELS", 3),
                max_queue=number("OLLAMA_MAX_QUEUE", 512),
                keep_s=seconds("OLLAMA_KEEP_ALIVE", 300.0),
                load_s=seconds("OLLAMA_LOAD_TIMEOUT", 300.0) or FOREVER,
            ),
            context=number("OLLAMA_CONTEXT_LENGTH", DEFAULT_CONTEXT),
            parallel=number("OLLAMA_NUM_PARALLEL", 1),
            origins=tuple(
                each.strip() for each in text("OLLAMA_ORIGINS").split(",") if each.strip()
            ),
        )


def plan_spec(
    settings: Settings, path: Path, header: gguf.Header, options: Mapping[str, Any], *, shift: bool
) -> Spec:
    """How to load a model for a request with these options."""
    trained = header.number("context_length")
    context = max(4, options.get("num_ctx", settings.context))
    if trained:
        context = min(context, trained)
    embedding = bool(header.number("pooling_type"))
    batch = max(
        2, min(options.get("num_batch", DEFAULT_BATCH), context)
    )  # with 1 the engine aborts
    return Spec(
        weights=path,
        n_ctx=context,
        n_batch=context if embedding else batch,
        threads=max(0, options.get("num_thread", 0)),
        gpu_layers=options.get("num_gpu", -1),
        shift=shift and not embedding,
        embedding=embedding,
        parallel=1 if embedding else settings.parallel,
    )


def sampling(options: Mapping[str, Any], n_ctx: int) -> dict[str, Any]:
    """The engine's sampling fields for these options."""
    fields = {name: options.get(name, default) for name, default in SAMPLING.items()}
    seed = options.get("seed", -1)
    fields["seed"] = seed if seed >= 0 else _RANDOM_SEED
    fields["n_keep"] = options.get("num_keep", 4)
    limit, wanted = 10 * n_ctx, options.get("num_predict", -1)
    fields["n_predict"] = wanted if 0 < wanted < limit else limit
    fields["stop"] = [each for each in fields["stop"] if each]
    return fields


def grammar(schema: Mapping[str, Any]) -> str:
    """A grammar for a JSON schema: compact JSON, keywords it does not know ignored."""
    from ollama_adapter.embedded.records import encode

    guided = {**schema, "x-guidance": {"whitespace_flexible": False, "lenient": True}}
    return "%llguidance {}\nstart: %json " + encode(guided).decode()


def window(n_ctx: int) -> int:
    """The context that the engine makes of it: a multiple of 256."""
    return -(-n_ctx // 256) * 256


def shortened(tokens: list[int], n_ctx: int, num_keep: int) -> list[int]:
    """A prompt that is too long, cut as Ollama cuts it: its head, and as much tail as half the rest."""
    keep = max(0, min(num_keep, n_ctx // 2))
    tail = max(1, (n_ctx - keep) // 2)
    return tokens[:keep] + tokens[-tail:]


def default_models_dir(env: Mapping[str, str], home: Path) -> Path:
    """Where models are: OLLAMA_MODELS, else Ollama's own directory if it exists, else ours."""
    wanted = env.get("OLLAMA_MODELS", "").strip().strip("\"'")
    if wanted:
        return Path(wanted)
    shared = home / ".ollama" / "models"
    if shared.is_dir():
        return shared
    import platformdirs

    return platformdirs.user_data_path("ollama-adapter") / "models"
