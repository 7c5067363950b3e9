#!/usr/bin/env python3
"""A program that plays an `ollama serve` whose runners work on after every abort; run by tests.

`alias-m` is another name of the model `m`.

A file beside it, `behaviour`, says what else is wrong: `keeps` ignores an unload, `nameless` does not tell
which file a model is in, `dies` loses its runner as soon as a client goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BEHAVIOUR = (Path(__file__).resolve().parent / "behaviour").read_text().split()
SPIN = "while :; do :; done"
RUNNERS: dict[str, subprocess.Popen[bytes]] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"version": "0.32.15", "models": []})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = asked["model"].partition(":")[0].lower().removeprefix("alias-")
        if self.path == "/api/show":
            named = {} if "nameless" in BEHAVIOUR else {"modelfile": f"FROM /blobs/sha256-{model}"}
            self._answer({"capabilities": ["completion"], **named})
        elif asked["prompt"]:
            self._stream()
            if "dies" in BEHAVIOUR:
                self._unload(model)
        else:
            if asked["keep_alive"] == 0 and "keeps" not in BEHAVIOUR:
                self._unload(model)
            elif asked["keep_alive"] != 0:
                self._load(model)
            self._answer({"response": "", "done": True, "done_reason": "load"})

    def _load(self, model: str) -> None:
        argv = ["sh", "-c", SPIN, "llama-server", "--model", f"/blobs/sha256-{model}"]
        if model not in RUNNERS:
            RUNNERS[model] = subprocess.Popen(argv)

    def _unload(self, model: str) -> None:
        if (runner := RUNNERS.pop(model, None)) is not None:
            runner.kill()
            runner.wait()

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        line = json.dumps({"response": "x", "done": False}).encode() + b"\n"
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
                time.sleep(0.01)  # noqa: TID251 - it plays a model that takes its time
        self.close_connection = True

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    host, _, port = os.environ["OLLAMA_HOST"].partition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    print("ready", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
