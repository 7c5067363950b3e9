"""One health request: who listens on a port, if it is Ollama."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ollama_adapter.config import LOOPBACK
from ollama_adapter.errors import ConnectFailed, NotOllama, ReadTimeout, TransportError
from ollama_adapter.system.dialing import Dial
from ollama_adapter.system.fetching import fetch
from ollama_adapter.system.http import encode_request

PROBE: Final = encode_request("GET", "/api/version")
MAX_VERSION: Final = 64  # characters
MAX_ANSWER: Final = 1 << 20


async def probe(dial: Dial, port: int, limit_s: float) -> str:
    """The version of the daemon that `dial` reaches: HTTP 200 and a version is the only yes.

    Raises ConnectFailed when nobody listens, NotOllama when somebody else does, and ReadTimeout when
    nobody answers: Ollama opens its port seconds before it does, while it looks for GPUs. Cancelling is
    safe.
    """
    stranger = NotOllama(
        f"what listens on {LOOPBACK}:{port} is not Ollama",
        hint="stop that program, or set OLLAMA_HOST to another port",
    )
    try:
        response = await fetch(
            dial, PROBE, connect_s=limit_s, answer_s=limit_s, max_bytes=MAX_ANSWER
        )
        answer = msgspec.json.decode(response.body, type=dict[str, Any])
    except (ConnectFailed, ReadTimeout):
        raise
    except TransportError as error:
        raise stranger from error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise stranger from None
    version = answer.get("version")
    if response.status != 200 or not isinstance(version, str) or not version:
        raise stranger
    return version[:MAX_VERSION]
