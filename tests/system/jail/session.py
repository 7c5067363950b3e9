"""A whole session of our own daemon at each level, in a network that records; run as a script.

argv: the levels to try. Prints as JSON what the daemon answered and how many packets were sent, by level, and
the same of a control.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from typing import Any

from ollama_adapter.errors import NotSandboxed, TransportError
from ollama_adapter.system import settings
from ollama_adapter.system.dialing import Dial, find_free_port
from ollama_adapter.system.fetching import fetch
from ollama_adapter.system.http import encode_request, open_exchange
from ollama_adapter.system.jail.paths import daemon_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope
from tests.system.jail.recorder import Recorder, enter_network, send_away


async def session(level: Level) -> str:
    """Start, answer, abort, embed, be asked to pull, stop."""
    scope = TaskScope()
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        home, models = os.path.join(base, "home"), os.path.join(base, "models")
        os.mkdir(home)
        os.mkdir(models)
        argv, port = settings.embedded_command(), find_free_port()
        environment = {"HOME": home, "OLLAMA_MODELS": models, "OLLAMA_HOST": f"127.0.0.1:{port}"}
        if compiled := os.environ.get("PYTHONPYCACHEPREFIX"):
            environment["PYTHONPYCACHEPREFIX"] = compiled
        policy = daemon_policy(level, argv, home=home, models=models, port=port)
        try:
            child = await spawn(argv, environment, "/", scope, policy)
        except NotSandboxed as refusal:
            return f"refused: {refusal}"
        said = await exchanges(child.dial)
        await child.stop(10.0)
        await scope.aclose()
    return said


async def exchanges(dial: Dial) -> str:
    request = encode_request("GET", "/api/version")
    while True:
        with contextlib.suppress(TransportError):
            await fetch(dial, request, connect_s=5, answer_s=5)
            break
        await asyncio.to_thread(lambda: None)
    asked: dict[str, Any] = {"model": "tinydoc", "prompt": "What does len do?"}
    statuses = []
    for path, body in (
        ("/api/generate", asked | {"options": {"num_predict": 8}, "stream": False}),
        ("/api/embed", {"model": "tinydoc", "input": "text"}),
        ("/api/pull", {"model": "anything", "stream": False}),
        ("/api/generate", {"model": "big:cloud", "prompt": "x", "stream": False}),
    ):
        answer = await fetch(
            dial, encode_request("POST", path, json.dumps(body).encode()), connect_s=5, answer_s=60
        )
        statuses.append(answer.status)
    aborted = encode_request("POST", "/api/generate", json.dumps(asked).encode())
    came = asyncio.Event()
    exchange = await open_exchange(dial, aborted, lambda *_: came.set(), 5)
    await came.wait()
    exchange.close()
    return " ".join(map(str, statuses))


def main() -> None:
    try:
        enter_network()
        recorder = Recorder()
    except OSError as error:
        json.dump({"walls": str(error)}, sys.stdout)
        return
    report: dict[str, Any] = {"walls": "", "sent": send_away(), "control": recorder.counts()[0]}
    for level in sys.argv[1:]:
        said = asyncio.run(session(Level(level)))
        away, sent = recorder.counts()
        report[level] = {"said": said, "away": away, "sent": sent}
    json.dump(report | {"lost": recorder.lost()}, sys.stdout)


if __name__ == "__main__":
    main()
