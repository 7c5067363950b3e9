#!/usr/bin/env python3
"""A program that behaves like `ollama serve` where supervision is concerned; run by tests.

What it does besides is told by a file beside it, `behaviour`: a word per line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "slow" in (HERE / "behaviour").read_text() and not (HERE / "answered").exists():
            (HERE / "answered").touch()
            time.sleep(1.0)  # noqa: TID251 - it plays a daemon that is slow
        answer = {"version": "0.32.15"} if self.path == "/api/version" else {}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        print("x" * 100, flush=True)


def main() -> None:
    behaviour = (HERE / "behaviour").read_text().split()
    starts = HERE / "starts"
    starts.write_text(
        starts.read_text() + f"{os.getpid()}\n" if starts.exists() else f"{os.getpid()}\n"
    )
    (HERE / "environment").write_text(json.dumps(dict(os.environ)))
    if "fail" in behaviour:
        sys.exit("Error: it cannot work today")
    if "port-taken-once" in behaviour and len(starts.read_text().split()) == 1:
        sys.exit("Error: listen tcp: bind: address already in use")
    if "deaf" in behaviour:
        signal.pause()
    if "stubborn" in behaviour:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "runner" in behaviour:
        runner = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        (HERE / "runner").write_text(str(runner.pid))
    host, _, port = os.environ["OLLAMA_HOST"].partition(":")
    HTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
