"""What is open goes on working; a runner opens nothing more, the front its models only, in no thread."""

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


SERVING = """
import ctypes, errno, json, os, signal, socket, sys, threading
package = type(sys)("ollama_adapter")
package.__path__ = [sys.argv[1]]
sys.modules["ollama_adapter"] = package
from ollama_adapter.system.jail import landlock, seal
store, other = sys.argv[2], sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def connect():
    spare.connect(elsewhere.getsockname())

def write(path):
    with open(path, "a") as file:
        file.write("x")

def fork():
    if os.fork() == 0:
        os._exit(0)

def trace():
    if libc.ptrace(16, os.getppid(), 0, 0) < 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "")

X86 = os.uname().machine == "x86_64"
ATTEMPTS = {
    "socket": socket.socket,
    "pair": socket.socketpair,
    "connect": connect,
    "bind": lambda: spare.bind(("127.0.0.1", 0)),
    "run": lambda: os.execv("/bin/true", ["true"]),
    "run a descriptor": lambda: os.execve(program, ["true"], {}),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "fork": fork,
    "memory": lambda: os.memfd_create("x"),
    "trace": trace,
    "memory of another": lambda: call(310 if X86 else 270, os.getppid(), 0, 0, 0, 0, 0),
    "signal another": lambda: os.kill(os.getppid(), 0),
    "signal its thread": lambda: call(234 if X86 else 131, os.getppid(), os.getppid(), 0),
    "ring": lambda: call(425, 1, ctypes.create_string_buffer(256)),
    "namespace": lambda: call(272 if X86 else 97, 0x10000000),
}
FILES = {
    "read elsewhere": lambda: os.open(other, os.O_RDONLY),
    "write elsewhere": lambda: write(other),
    "create elsewhere": lambda: write(other + ".new"),
    "list elsewhere": lambda: os.listdir("/"),
    "change our own code": lambda: write(sys.argv[1] + "/errors.py"),
}
NEEDS = {
    "read a model": lambda: open(store + "/model").read(),
    "write a model": lambda: write(store + "/new"),
    "name a model": lambda: os.rename(store + "/new", store + "/newer"),
    "import": lambda: __import__("ollama_adapter.system.jail.policy"),
    "thread": lambda: [each.start() or each.join() for each in [threading.Thread(target=int)]],
    "signal oneself": lambda: signal.pthread_kill(threading.get_ident(), 0),
    "accept": lambda: listener.accept()[0].sendall(b"token"),
}

def attempt(what):
    ends = {}
    for name, each in what.items():
        try:
            each()
            ends[name] = ""
        except OSError as error:
            ends[name] = errno.errorcode[error.errno]
    return ends

program = os.open("/bin/true", os.O_RDONLY)
spare, elsewhere = socket.socket(), socket.create_server(("127.0.0.1", 0))
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
go, done, told = threading.Event(), threading.Event(), {}

def work():
    go.wait()
    told["older"] = attempt(ATTEMPTS)
    done.set()

files = landlock.abi() > 0
if files:
    seal.keep_to_files([sys.argv[1], "/no/such/path", *sys.path[:2]], [store])
threading.Thread(target=work, daemon=True).start()
seal.serve_only()
go.set()
done.wait()
told["main"] = attempt(ATTEMPTS)
told["files"] = attempt(FILES) if files else None
told["needs"] = attempt(NEEDS)
told["answer"] = client.recv(16).decode()
print(json.dumps(told))
"""


def test_a_front_serves_and_starts_nothing_and_opens_its_models_only(tmp_path: Path) -> None:
    store, other = tmp_path / "models", tmp_path / "secret"
    store.mkdir()
    (store / "model").write_text("weights")
    other.write_text("key")
    argv = [sys.executable, "-I", "-S", "-c", SERVING, SOURCE, str(store), str(other)]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)
    assert told["answer"] == "token"
    assert set(told["needs"].values()) == {""}, told["needs"]
    for thread in ("older", "main"):
        assert set(told[thread].values()) <= {"EPERM", "EACCES", "ENOSYS"}, told[thread]
    if told["files"] is not None:
        assert set(told["files"].values()) == {"EACCES"}, told["files"]
        assert other.read_text() == "key"
