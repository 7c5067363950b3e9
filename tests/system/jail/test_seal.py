"""The seal of a runner: what is open goes on working, nothing new is opened, in no thread."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ollama_adapter

SOURCE = str(Path(ollama_adapter.__file__).parent)
CODE = """
import errno, json, os, socket, sys, threading
package = type(sys)("ollama_adapter")
package.__path__ = [sys.argv[1]]
sys.modules["ollama_adapter"] = package
from ollama_adapter.system.jail import seal

ATTEMPTS = {
    "open": lambda: os.open("/dev/null", os.O_RDONLY),
    "create": lambda: os.open("/tmp/sealed", os.O_CREAT | os.O_WRONLY),
    "socket": lambda: socket.socket(),
    "pair": lambda: socket.socketpair(),
    "connect": lambda: spare.connect(("127.0.0.1", 9)),
    "bind": lambda: spare.bind(("127.0.0.1", 0)),
    "run": lambda: os.execv("/bin/true", ["true"]),
    "memory": lambda: os.memfd_create("x"),
}

def attempt():
    ends = {}
    for name, each in ATTEMPTS.items():
        try:
            each()
            ends[name] = ""
        except OSError as error:
            ends[name] = errno.errorcode[error.errno]
    return ends

spare = socket.socket()
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
go, done, told = threading.Event(), threading.Event(), {}

def work():
    go.wait()
    told["older"] = attempt()
    done.set()

threading.Thread(target=work, daemon=True).start()
seal.close()
go.set()
done.wait()
told["main"] = attempt()
server, _ = listener.accept()
server.sendall(b"token")
told["answer"] = client.recv(16).decode()
younger = threading.Thread(target=lambda: told.update(younger=attempt()))
younger.start()
younger.join()
print(json.dumps(told))
"""


def test_a_sealed_process_answers_and_opens_nothing() -> None:
    argv = [sys.executable, "-I", "-S", "-c", CODE, SOURCE]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)
    assert told["answer"] == "token"
    for thread in ("older", "main", "younger"):
        assert set(told[thread].values()) == {"EACCES"}, told
