"""Where settings and files are found on this machine, when the application does not say.

The one reader of the environment. A spawned daemon gets an environment made here from an allow-list:
what it inherits, its runners inherit, and a stray variable gives those tools or takes a prompt away.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ollama_adapter.config import Config, DaemonConfig
from ollama_adapter.errors import ConfigError
from ollama_adapter.system.jail import JAIL_UID

APPLICATION: Final = "ollama-adapter"
FILE: Final = "OLLAMA_ADAPTER_CONFIG"
COMPILED: Final = "PYTHONPYCACHEPREFIX"
PASSED_ON: Final = (
    "CUDA_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "LANG",
    "LD_LIBRARY_PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    COMPILED,
    "ROCR_VISIBLE_DEVICES",
    "OLLAMA_CONTEXT_LENGTH",
    "OLLAMA_FLASH_ATTENTION",
    "OLLAMA_GPU_OVERHEAD",
    "OLLAMA_KV_CACHE_TYPE",
    "OLLAMA_LOAD_TIMEOUT",
    "OLLAMA_MAX_LOADED_MODELS",
    "OLLAMA_MAX_QUEUE",
    "OLLAMA_NUM_PARALLEL",
)

log = logging.getLogger("ollama_adapter")


def settings_file() -> Path:
    """Where the user's settings are read from, if it exists."""
    if given := _named_file():
        return Path(given)
    import platformdirs  # here and below: nothing is imported before it is needed

    return platformdirs.user_config_path(APPLICATION) / "config.toml"


def _named_file() -> str:
    return os.environ.get(FILE, "").strip()


def load_config() -> Config:
    """The user's settings: file, then environment. Raises ConfigError."""
    path = settings_file()
    environment = {k: v for k, v in os.environ.items() if k != FILE}
    host = environment.get("OLLAMA_HOST", "")
    config = Config.parse(_read(path), environment, file=str(path))
    if "0.0.0.0" in host or "::" in host:  # where Ollama would listen on every interface
        log.warning("OLLAMA_HOST is an address for every interface; 127.0.0.1 is used")
    return config


def _read(path: Path) -> str:
    """The text of the settings file; "" where there is none and none was named."""
    named = f"{FILE} names it" if _named_file() else ""
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        if named:
            raise ConfigError(f"there is no settings file {path}", hint=named) from error
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the settings file {path} is not UTF-8: byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}",
            hint=named or "it is to be TOML, which is text in UTF-8",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the settings file {path} cannot be read: {error.strerror}",
            hint=named or f"make it readable, or name another one in {FILE}, or another HOME",
        ) from error


def models_dir(config: DaemonConfig) -> Path:
    """The model store: the one configured, else Ollama's own if there is one, else ours."""
    if config.models_dir:
        try:
            return Path(config.models_dir).expanduser().absolute()
        except RuntimeError as error:  # of ~nosuchuser
            raise ConfigError(f"the directory {config.models_dir} is nobody's home") from error
    ollamas = Path("~/.ollama/models").expanduser()
    return ollamas if os.path.isdir(ollamas) else _own_data() / "models"


def pulling_dir() -> Path:
    """Where downloads grow, if it is on the disk of the store."""
    return _own_data() / ".pulling"


def may_be_written(store: Path) -> bool:
    """The daemon may change this store. Root's daemon is another user: it would have to be given away."""
    ours_to_give = os.geteuid() != 0 or store.is_relative_to(_own_data())
    return ours_to_give and os.access(store, os.W_OK | os.X_OK)


def check_readable(store: Path, *, jailed: bool) -> None:
    """The daemon may read a store that is there, in a jail or without one. Raises ConfigError."""
    if not os.access(store, os.R_OK | os.X_OK):
        raise ConfigError(
            f"the model store {store} cannot be read",
            hint="set OLLAMA_MODELS to a directory that you may read",
        )
    if jailed and os.geteuid() == 0 and not may_be_written(store):
        about = store.stat()
        if about.st_uid != JAIL_UID and about.st_mode & 0o005 != 0o005:
            raise ConfigError(
                f"the model store {store} cannot be read by the daemon, which is another user than root",
                hint=f"chmod -R o+rX {store}, or set OLLAMA_MODELS to a directory that others may read",
            )


def find_ollama(config: DaemonConfig) -> str | None:
    """The absolute path of the `ollama` program; None when there is none, ConfigError when one is named."""
    import shutil

    found = shutil.which(config.ollama_path or "ollama")
    if config.ollama_path and not found:
        raise ConfigError(
            f"there is no program {config.ollama_path}", hint="set daemon.ollama_path, or unset it"
        )
    return os.path.realpath(found) if found else None


def has_embedded_engine() -> bool:
    """The packages of the extra [embedded] are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "uvicorn"))


def embedded_command() -> list[str]:
    return [sys.executable, "-P", "-m", "ollama_adapter.embedded"]


def check_places(store: Path) -> None:
    """A daemon's home can be written, and its store made or read. Makes nothing. Raises ConfigError."""
    for place, variable in ((_daemon_home(), "XDG_STATE_HOME"), (store, "OLLAMA_MODELS")):
        there = next(each for each in (place, *place.parents) if os.path.exists(each))
        if place == store == there:
            continue  # one that can only be read is enough
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            verb = "written" if place == there else "made"
            where = "" if place == there else f": {there} cannot be written"
            raise ConfigError(
                f"the directory {place} cannot be {verb}{where}",
                hint=f"set {variable} to a directory that you may write",
            )


def _own_data() -> Path:
    import platformdirs

    return platformdirs.user_data_path(APPLICATION)


def _daemon_home() -> Path:
    import platformdirs

    return platformdirs.user_state_path(APPLICATION) / "home"


def daemon_environment(
    port: int, store: Path, keep_alive: str, defaults: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a spawned daemon: 127.0.0.1, no cloud, a home of its own.

    `defaults` is what it gets where this process's environment does not say otherwise.
    """
    home = _daemon_home()
    check_places(store)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        store.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise ConfigError(
            f"the directory {error.filename} cannot be made: {error.strerror}",
            hint="set XDG_STATE_HOME and OLLAMA_MODELS to directories that you may write",
        ) from error
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if not Path(passed_on.get(COMPILED, "")).is_relative_to(sys.prefix):
        passed_on.pop(COMPILED, None)  # a jail does not show it, and all would be compiled anew
    return {**(defaults or {}), **passed_on} | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_KEEP_ALIVE": keep_alive,
        "OLLAMA_MODELS": str(store),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_REMOTES": "",
    }


def requests_at_a_time() -> int:
    """How many answers of one model a daemon that we spawn writes at once, as Ollama reads the variable."""
    text = os.environ.get("OLLAMA_NUM_PARALLEL", "").strip().strip("\"'")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 5 else 1


def directories_in(environment: Mapping[str, str]) -> list[str]:
    """What the search paths in a daemon's environment name, which it must be able to read."""
    paths = [environment.get(name, "") for name in ("LD_LIBRARY_PATH", "PYTHONPATH")]
    return [each for path in paths for each in path.split(os.pathsep) if os.path.isdir(each)]
