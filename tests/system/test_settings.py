"""Where settings come from, and what a daemon is told of this machine."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from ollama_adapter.config import Config, DaemonConfig, Tier
from ollama_adapter.errors import AdapterError, ConfigError, NotLoopback
from ollama_adapter.system import settings


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of our own, and nothing of the machine's environment that settings would read."""
    for name in os.environ:
        if name.startswith(("OLLAMA", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_without_any_source_the_defaults_hold() -> None:
    assert settings.load_config() == Config()


def test_the_users_file_is_read_and_the_environment_wins(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / ".config/ollama-adapter/config.toml", "shutdown_s = 3\n[energy]\ntier = 'low'")
    monkeypatch.setenv("OLLAMA_ADAPTER_SHUTDOWN_S", "4")
    config = settings.load_config()
    assert (config.shutdown_s, config.energy.tier) == (4.0, Tier.LOW)


def test_another_file_can_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".config/ollama-adapter/config.toml", "nonsense")
    path = write(home / "mine.toml", "shutdown_s = 3")
    monkeypatch.setenv("OLLAMA_ADAPTER_CONFIG", str(path))
    assert settings.settings_file() == path
    assert settings.load_config().shutdown_s == 3.0


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense",
        b"\xff\xfe",
        b"shutdown_s = -1",
        b"[daemon]\nport = 'x'",
        b"unknown = 1",
        b"a = \0",
    ],
)
def test_a_broken_file_is_an_error_of_ours(
    content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_ADAPTER_CONFIG", str(write(home / "broken.toml", content)))
    with pytest.raises(ConfigError):
        settings.load_config()


def test_a_file_that_cannot_be_read_is_an_error_of_ours(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = home / ".config/ollama-adapter/config.toml"
    usual.mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        settings.load_config()
    assert str(caught.value) == f"the settings file {usual} cannot be read: Is a directory"
    assert "name another one in OLLAMA_ADAPTER_CONFIG" in caught.value.hint
    monkeypatch.setenv("OLLAMA_ADAPTER_CONFIG", str(home))
    with pytest.raises(ConfigError) as caught:
        settings.load_config()
    assert str(caught.value) == f"the settings file {home} cannot be read: Is a directory"
    assert caught.value.hint == "OLLAMA_ADAPTER_CONFIG names it"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"shutdown_s =", "is not TOML: Invalid value (at end of document)"),
        (b"a = " + b"9" * 5000, "is not TOML: a number in it is too long"),
        (b"a = " + b"[" * 5000, "is not TOML: it is nested too deep"),
        (b"a = 1 # \xff", "is not UTF-8: byte 0xff at position 8"),
    ],
)
def test_what_is_no_settings_file_is_named_and_said_in_words(
    content: bytes, words: str, home: Path
) -> None:
    path = write(home / ".config/ollama-adapter/config.toml", content)
    with pytest.raises(ConfigError) as caught:
        settings.load_config()
    assert str(caught.value) == f"the settings file {path} {words}"
    assert "TOML" in caught.value.hint or "quotes" in caught.value.hint


def test_a_home_that_is_none_holds_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    assert settings.load_config() == Config()
    monkeypatch.setenv("HOME", "/" + "x" * 300)  # neither there nor absent: it cannot be asked for
    assert settings.models_dir(DaemonConfig()).parts[-2:] == ("ollama-adapter", "models")


@pytest.mark.parametrize("empty", ["", " "])
def test_a_name_that_is_empty_names_no_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.setenv("OLLAMA_ADAPTER_CONFIG", empty)
    assert settings.load_config() == Config()
    write(home / ".config/ollama-adapter/config.toml", "shutdown_s = 3")
    assert settings.load_config().shutdown_s == 3.0


def test_a_settings_file_that_was_named_must_be_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (home / "absent.toml", write(home / "file", "") / "absent.toml"):
        monkeypatch.setenv("OLLAMA_ADAPTER_CONFIG", str(path))
        with pytest.raises(ConfigError, match=r"no settings file .*absent\.toml"):
            settings.load_config()


def test_a_program_that_was_named_must_be_there() -> None:
    with pytest.raises(ConfigError, match="no program /nowhere/ollama"):
        settings.find_ollama(DaemonConfig(ollama_path="/nowhere/ollama"))


def test_the_store_is_the_same_wherever_the_daemon_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert settings.models_dir(DaemonConfig(models_dir="mine")) == home / "mine"
    with pytest.raises(ConfigError, match="nobody's home"):
        settings.models_dir(DaemonConfig(models_dir="~no-such-user/models"))


@pytest.mark.parametrize(
    ("host", "port", "warns"),
    [
        ("127.0.0.1:5000", 5000, False),
        ("localhost:5000", 5000, False),
        (":5000", 5000, False),
        ("0.0.0.0:5000", 5000, True),
        ("http://0.0.0.0:5000", 5000, True),
        ("[::]:5000", 5000, True),
        ("0.0.0.0", 11434, True),
    ],
)
def test_the_address_of_ollama_is_honoured(
    host: str,
    port: int,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    with caplog.at_level(logging.WARNING, "ollama_adapter"):
        config = settings.load_config()
    assert (config.daemon.host, config.daemon.port) == ("127.0.0.1", port)
    assert bool(caplog.records) is warns


def test_an_address_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "example.org:11434")
    with pytest.raises(NotLoopback):
        settings.load_config()


def test_the_store_is_the_configured_one_else_ollamas_else_ours(home: Path) -> None:
    assert settings.models_dir(DaemonConfig()) == home / ".local/share/ollama-adapter/models"
    (home / ".ollama/models").mkdir(parents=True)
    assert settings.models_dir(DaemonConfig()) == home / ".ollama/models"
    assert settings.models_dir(DaemonConfig(models_dir="/m")) == Path("/m")
    assert settings.models_dir(DaemonConfig(models_dir="~/m")) == home / "m"


def test_a_file_in_the_place_of_ollamas_store_is_no_store(home: Path) -> None:
    write(home / ".ollama/models", "")
    assert settings.models_dir(DaemonConfig()) == home / ".local/share/ollama-adapter/models"


STRAY = {
    "ALL_PROXY": "http://proxy",
    "HTTPS_PROXY": "http://proxy",
    "HTTP_PROXY": "http://proxy",
    "LD_PRELOAD": "/evil.so",
    "LLAMA_ARG_HOST": "0.0.0.0",
    "LLAMA_ARG_TOOLS": "all",
    "NO_PROXY": "*",
    "OLLAMA_API_KEY": "key",
    "OLLAMA_AUTH": "1",
    "OLLAMA_CLOUD_BASE_URL": "http://cloud",
    "OLLAMA_DEBUG": "2",
    "OLLAMA_DEBUG_LOG_REQUESTS": "1",
    "OLLAMA_HOST": "0.0.0.0:1",
    "OLLAMA_KEEP_ALIVE": "7h",
    "OLLAMA_MODELS": "/elsewhere",
    "OLLAMA_NOPRUNE": "0",
    "OLLAMA_NO_CLOUD": "0",
    "OLLAMA_ORIGINS": "*",
    "OLLAMA_REMOTES": "example.org",
    "PATH": "/evil",
    "PYTHONSTARTUP": "/evil.py",
    "SSH_AUTH_SOCK": "/agent",
    "http_proxy": "http://proxy",
    "https_proxy": "http://proxy",
    "AWS_SECRET_ACCESS_KEY": "key",
}


def test_a_daemon_gets_nothing_of_the_environment_but_what_is_allowed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in STRAY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "2")
    environment = settings.daemon_environment(5000, home / "models", "5m")
    ours = {
        "HOME": str(home / ".local/state/ollama-adapter/home"),
        "TMPDIR": str(home / ".local/state/ollama-adapter/home"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "OLLAMA_HOST": "127.0.0.1:5000",
        "OLLAMA_KEEP_ALIVE": "5m",
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_REMOTES": "",
        "CUDA_VISIBLE_DEVICES": "1",
        "OLLAMA_NUM_PARALLEL": "2",
    }
    assert {name: environment[name] for name in ours} == ours
    assert set(environment) <= {*ours, *settings.PASSED_ON}
    assert not set(STRAY) & set(settings.PASSED_ON)
    assert not {each for each in settings.PASSED_ON if each.startswith(("LLAMA", "GGML_"))} - {
        "GGML_VK_VISIBLE_DEVICES"
    }


def test_what_the_user_sets_counts_before_our_defaults(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "2")
    defaults = {"OLLAMA_NUM_PARALLEL": "1", "OLLAMA_MAX_LOADED_MODELS": "6", "OLLAMA_HOST": "x"}
    environment = settings.daemon_environment(5000, home / "models", "5m", defaults)
    assert environment["OLLAMA_NUM_PARALLEL"] == "2"
    assert environment["OLLAMA_MAX_LOADED_MODELS"] == "6"
    assert environment["OLLAMA_HOST"] == "127.0.0.1:5000"


@pytest.mark.parametrize(("place", "passed"), [(sys.prefix, True), ("/elsewhere", False)])
def test_bytecode_is_looked_for_only_where_a_jail_shows_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, place: str, passed: bool
) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", f"{place}/bytecode")
    environment = settings.daemon_environment(5000, home / "models", "5m")
    assert environment.get("PYTHONPYCACHEPREFIX") == (f"{place}/bytecode" if passed else None)


def test_the_home_of_a_daemon_is_made_and_private(home: Path) -> None:
    environment = settings.daemon_environment(5000, home / "a/b/models", "5m")
    assert Path(environment["HOME"]).stat().st_mode & 0o777 == 0o700
    assert (home / "a/b/models").is_dir()
    settings.daemon_environment(5000, home / "a/b/models", "5m")


def test_a_directory_that_cannot_be_made_is_an_error_of_ours(home: Path) -> None:
    blocked = write(home / "file", "") / "models"
    with pytest.raises(ConfigError, match="cannot be made") as caught:
        settings.daemon_environment(5000, blocked, "5m")
    assert "OLLAMA_MODELS" in caught.value.hint


def test_the_program_is_looked_for_on_the_path_or_where_it_is_said_to_be(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert settings.find_ollama(DaemonConfig()) is None
    program = write(home / "real/ollama", "#!/bin/sh\n")
    program.chmod(0o755)
    (home / "bin").mkdir()
    (home / "bin/ollama").symlink_to(program)
    assert settings.find_ollama(DaemonConfig()) == str(program), (
        "llama-server is beside the real one"
    )
    assert settings.find_ollama(DaemonConfig(ollama_path=str(program))) == str(program)
    program.chmod(0o644)
    assert settings.find_ollama(DaemonConfig()) is None


def test_the_embedded_daemon_is_started_from_this_python_alone() -> None:
    command = settings.embedded_command()
    assert command[0] == sys.executable
    assert command[1] == "-P", "the working directory must not give it modules"


@pytest.mark.parametrize("value", ["\udcff", "http://[", "x" * 10_000, "127.0.0.1:\udc80"])
def test_any_environment_is_a_config_or_an_error_of_ours(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "OLLAMA_HOST",
        "OLLAMA_MODELS",
        "OLLAMA_KEEP_ALIVE",
        "OLLAMA_ADAPTER_POOL_KEEP_ALIVE",
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            try:
                settings.load_config()
            except AdapterError:
                pass


@pytest.mark.parametrize(
    ("text", "count"),
    [(None, 1), ("4", 4), (' "8" ', 8), ("0", 1), ("-2", 1), ("many", 1), ("9" * 5000, 1), ("", 1)],
)
def test_how_many_requests_at_a_time_a_daemon_is_told(
    text: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_NUM_PARALLEL", raising=False)
    if text is not None:
        monkeypatch.setenv("OLLAMA_NUM_PARALLEL", text)
    assert settings.requests_at_a_time() == count
