"""Decides where the project's virtual environment lies and when it is built; runs Python in it.

    python3 tools/environment.py EXTRA ARGUMENT...   `python ARGUMENT...` in an environment with [EXTRA]
    python3 tools/environment.py where               the environment's directory
    python3 tools/environment.py clean               remove it

The environment lies in $VENV if that is set, else in the checkout's .venv, else, where that cannot be
written or is another user's, in the user's cache under a name made from the checkout's path. It is built
anew when the path, the Python or what pyproject.toml asks for is another one: its stamp, written last,
holds a hash of the three, so an interrupted build is repaired by the next call. A lock makes concurrent
calls take turns. Every tool's cache lies inside the environment: a checkout is never written to. Bytecode
lies there where a jailed daemon may read, which cannot write its own, and is made before anything runs.

The package is installed editable: the tests see the source as it is, without another install, and only
the environment is written. Nothing but the standard library is used here, and the syntax stays that of
Python 3.8, so that an old Python gets a sentence instead of a SyntaxError.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
EXTRAS = ("all", "dev", "bench")  # each holds the ones before it
LOCK = "environment.lock"
STAMP = "environment.stamp"
Build = Callable[[Path, str, str], None]
WARM = "import ollama_adapter.embedded.serve, ollama_adapter.embedded.orders"
INSTALL_HINT = "on Debian or Ubuntu: apt install python3 python3-venv"


class Trouble(Exception):
    """What the user has to know, in one line."""


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running pip is ended, too
    try:
        return dispatch(arguments)
    except KeyboardInterrupt:
        return 130
    except PermissionError as error:
        print(f"error: {error}: set VENV to a directory you can write", file=sys.stderr)
    except (Trouble, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def dispatch(arguments: Sequence[str]) -> int:
    check_python()
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    venv = locate(ROOT, os.environ)
    if verb == "where":
        print(venv)
    elif verb == "clean":
        remove(venv)
    elif verb in EXTRAS:
        ensure(venv, key(ROOT, python_identity()), verb)
        execute(venv, rest)
    else:
        raise Trouble(f"say one of {', '.join(EXTRAS)}, where, clean; not {verb!r}")
    return 0


def check_python() -> None:
    """Raises Trouble where this Python cannot make an environment."""
    if sys.version_info < OLDEST:
        found, oldest = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST))
        raise Trouble(f"Python {oldest} or newer is needed, this is {found} ({INSTALL_HINT})")
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise Trouble(f"{sys.executable} has no venv module ({INSTALL_HINT})")


def locate(root: Path, environ: Mapping[str, str]) -> Path:
    """The environment's directory, absolute; it need not exist."""
    if environ.get("VENV"):
        return root / environ["VENV"]
    local = root / ".venv"
    theirs = local.exists() and local.stat().st_uid != os.geteuid()  # root must not spoil a user's
    if not theirs and os.access(local if local.exists() else root, os.W_OK | os.X_OK):
        return local
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return cache_home(environ) / "ollama-adapter" / f"venv-{name}"


def cache_home(environ: Mapping[str, str]) -> Path:
    if os.path.isabs(environ.get("XDG_CACHE_HOME", "")):
        return Path(environ["XDG_CACHE_HOME"])
    home = environ.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise Trouble(
            "no place for the environment: set HOME, or VENV=DIRECTORY to one you can write"
        )
    return Path(home) / ".cache"


def key(root: Path, identity: str) -> str:
    """A hash of all that an environment depends on."""
    parts = (str(root), identity, repr(requirements(root / "pyproject.toml")))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def python_identity() -> str:
    return f"{os.path.realpath(base_python())} {sys.version}"


def base_python() -> str:
    """The Python outside any active environment, which may be the one about to be removed."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def requirements(pyproject: Path) -> object:
    """The part of pyproject.toml that decides what is installed; the tools' settings do not."""
    import tomllib  # not in the Pythons that check_python refuses

    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    return [table.get("build-system"), table.get("project"), table.get("tool", {}).get("hatch")]


def is_current(venv: Path, wanted: str, extra: str) -> bool:
    built, has = read_stamp(venv)
    current = built == wanted and has in EXTRAS and EXTRAS.index(has) >= EXTRAS.index(extra)
    return current and os.access(venv / "bin" / "python", os.X_OK)


def read_stamp(venv: Path) -> tuple[str, str]:
    try:
        built, has = (venv / STAMP).read_text(encoding="ascii").split()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "", ""
    return built, has


def write_stamp(venv: Path, wanted: str, extra: str) -> None:
    (venv / STAMP).write_text(f"{wanted} {extra}\n", encoding="ascii")


def build(venv: Path, wanted: str, extra: str) -> None:
    print(f"Making the environment {venv} (the first time takes a while)", file=sys.stderr)
    env = environment(venv, os.environ)
    if not is_current(venv, wanted, EXTRAS[0]):
        empty(venv)
        made = call([base_python(), "-m", "venv", str(venv)], env)
        if made.returncode:
            raise Trouble(f"no virtual environment could be made ({INSTALL_HINT})")
    (venv / STAMP).unlink(missing_ok=True)
    install = ["-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
    install += ["--disable-pip-version-check", "--no-warn-script-location"]
    made = call([python(venv), *install, "--editable", f"{ROOT}[{extra}]"], env)
    if made.returncode:
        raise Trouble("pip could not install the packages: its own message is above")
    call([python(venv), "-c", WARM], env)  # what a jailed daemon imports gets its bytecode
    write_stamp(venv, wanted, extra)


def ensure(venv: Path, wanted: str, extra: str, build: Build = build) -> None:
    """Makes sure that `venv` matches the key `wanted` and holds `extra`; at once when it does."""
    if is_current(venv, wanted, extra):
        return
    with locked(venv):
        if not is_current(venv, wanted, extra):  # nobody did it while we waited
            build(venv, wanted, extra)


def call(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Runs `command`, which ends with us; standard output is left to what is run in the end."""
    return subprocess.run(
        command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
    )


def execute(venv: Path, arguments: Sequence[str]) -> None:
    os.chdir(ROOT)
    compile_source(ROOT / "src", venv)
    os.execve(python(venv), [python(venv), *arguments], environment(venv, os.environ))


def compile_source(source: Path, venv: Path) -> None:
    """The bytecode of what has changed; an error in the source is for whoever imports it."""
    sys.pycache_prefix = str(bytecode(venv))
    compileall.compile_dir(str(source), quiet=2)


def bytecode(venv: Path) -> Path:
    """Beside the packages: a jailed daemon sees these, and neither the checkout nor other caches."""
    return venv / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "bytecode"


def python(venv: Path) -> str:
    """The only program of the environment that is ever called: its scripts name their first path."""
    return str(venv / "bin" / "python")


def environment(venv: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with every tool's cache inside `venv`, and without what leads Python elsewhere.

    Bytecode is written whatever `environ` says: without it each process compiles all that it imports.
    """
    cache = venv / "cache"
    pytest = (
        f"{environ.get('PYTEST_ADDOPTS', '')} -o cache_dir={shlex.quote(str(cache / 'pytest'))}"
    )
    ours = {
        "COVERAGE_FILE": str(cache / "coverage"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(cache / "hypothesis"),
        "MYPY_CACHE_DIR": str(cache / "mypy"),
        "PIP_USER": "0",  # a user's pip may be set to install outside environments
        "PYTEST_ADDOPTS": pytest.strip(),
        "PYTHONPYCACHEPREFIX": str(bytecode(venv)),
        "RUFF_CACHE_DIR": str(cache / "ruff"),
    }
    foreign = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    return {name: value for name, value in environ.items() if name not in foreign} | ours


@contextlib.contextmanager
def locked(venv: Path) -> Iterator[None]:
    """Holds the lock of `venv`, which is made where there is none, until the block ends."""
    import fcntl

    claim(venv)
    while True:
        venv.mkdir(parents=True, exist_ok=True)
        with open(venv / LOCK, "a", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Waiting for another build of {venv}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):  # removed by whom we waited for: once more
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(venv / LOCK)):
                    yield
                    return


def claim(venv: Path) -> None:
    """Raises Trouble for a directory that is something else, which `empty` must never touch."""
    if not venv.exists():
        return
    held = set(os.listdir(venv)) if venv.is_dir() else {""}  # once: others may be at work in it
    if held and not held & {LOCK, "pyvenv.cfg"}:
        raise Trouble(f"{venv} is not a virtual environment: set VENV to another directory")


def empty(venv: Path) -> None:
    """Removes everything but the lock; the stamp first, so that nothing half-removed looks whole."""
    (venv / STAMP).unlink(missing_ok=True)
    for each in venv.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != LOCK:
            each.unlink()


def remove(venv: Path) -> None:
    if not venv.exists():
        return
    with locked(venv):
        empty(venv)
        (venv / LOCK).unlink()
        venv.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
