"""The child process that holds one model: llama.cpp behind a loopback port with a key.

It loads the engine, and then waits for its settings: one JSON line on stdin. Never in argv: there only the
name of the model's file stands, which it writes there itself, and by which one runner is told from another.
The answer is one JSON line on the original
stdout: {"port": N}, or {"error": reason}. After that the process lives until stdin closes, which is
when its parent ends, however it ends. Loading holds the interpreter's lock, so besides the thread that
waits for the end of stdin the kernel is asked for a signal (SIGIO, deadly by default) on it.
It always leaves with os._exit: the server's destructor can hang. It imports nothing of this package but
the seal. On Linux it reads, from before it looks into the model, that file and the engine's and no other;
once the model is loaded and the port is open it gives up the right to open files and sockets and to start
programs, for all its threads. What sees prompts then can only answer.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

_ENGINE = "xllamacpp"
_REASONS = (ImportError, RuntimeError, ValueError, TypeError, OSError)
_LINGER_S = 2.0
_ARG_END = 46  # of the fields of /proc/self/stat that follow the name: man 5 proc_pid_stat


def main() -> None:
    """Serve one model until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the daemon decides
    report = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not into the report
    with contextlib.suppress(*_REASONS):  # which are told when there is somebody to tell
        importlib.import_module(_ENGINE)
    line = _first_line()
    if not line:
        os._exit(0)
    settings = json.loads(line)
    with contextlib.suppress(OSError, ValueError, IndexError):
        _take_name(os.path.basename(settings["model"]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _signal_end_of_parent()
    try:
        sealing = sys.platform == "linux" and not _reaches_a_gpu()
        if sealing:
            _keep_to(settings["model"])
        port = _serve(settings)
        if sealing:
            _seal()
        answer: dict[str, Any] = {"port": port}
    except ImportError:
        answer = {
            "error": "the package xllamacpp is not installed: pip install 'ollama-adapter[embedded]'"
        }
    except _REASONS as error:
        answer = {"error": f"error loading model: {error}"}
    os.write(report, json.dumps(answer).encode() + b"\n")
    if "error" in answer:
        _linger()
        os._exit(1)
    threading.Event().wait()


def _linger() -> None:
    """A thread of the engine's writes its log, and os._exit would not wait for it: the daemon kills us when
    it has read why the load failed, so that this is the time for a log that never says it."""
    if _ENGINE in sys.modules:
        threading.Event().wait(_LINGER_S)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (chunk := os.read(0, 4096)):
        line += chunk
    return line


def _take_name(name: str) -> None:
    """Written over the last argument, where that is empty space for it: it is its memory that others see."""
    place = sys.argv[-1]
    if place[1:].isspace():
        import ctypes

        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            end = int(file.read().rpartition(")")[2].split()[_ARG_END])
        text = os.fsencode(name)[: len(place)].ljust(len(place))
        start = end - 1 - len(text)
        if start > 0 and ctypes.string_at(start, len(text)) == place.encode():  # some kernels say 0
            ctypes.memmove(start, text, len(text))


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _signal_end_of_parent() -> None:
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())  # type: ignore[attr-defined,unused-ignore]
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)  # type: ignore[attr-defined,unused-ignore]


# Where the kernel cannot, or a GPU is at hand (its driver opens what it needs as it goes), the jail around
# us stays all there is.


def _keep_to(model: str) -> None:
    """A model file may be anybody's making: while it is parsed, there is nothing else to be read."""
    package = type(sys)("ollama_adapter")  # without what the package's own __init__ would load
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules.setdefault("ollama_adapter", package)
    with contextlib.suppress(OSError):
        from ollama_adapter.system.jail import paths, seal

        engine = (*paths.python_paths(), *paths.LIBRARIES, *paths.FACTS, *paths.HARDWARE)
        seal.keep_to_files([*engine, model], ())


def _seal() -> None:
    with contextlib.suppress(OSError):
        from ollama_adapter.system.jail import seal

        seal.close()


def _reaches_a_gpu() -> bool:
    for path in (*glob.glob("/dev/nvidia[0-9]*"), *glob.glob("/dev/dri/renderD*"), "/dev/kfd"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            return True
    return False


_server: Any = None  # kept: its destructor must never run


def _serve(settings: dict[str, Any]) -> int:
    global _server
    xllamacpp = importlib.import_module(_ENGINE)  # it has no types
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.n_ctx = settings["n_ctx"] * settings["parallel"]
    params.n_parallel = settings["parallel"]
    params.n_batch = params.n_ubatch = settings["n_batch"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.n_threads_http = settings["parallel"] + 3
    params.ctx_shift = settings["shift"]
    params.n_gpu_layers = settings["gpu_layers"]
    params.embedding = settings["embedding"]
    params.fit_params = False  # the daemon has decided
    params.warmup = False
    params.verbosity = 1  # errors only: nothing below names a prompt, and neither do they
    params.cache_ram_mib = 0  # no prompt outlives its slot
    params.ui = False
    params.endpoint_slots = False
    _server = xllamacpp.Server(params)
    return int(str(_server.listening_address).rsplit(":", 1)[1])


if __name__ == "__main__":
    main()
