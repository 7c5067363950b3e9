"""What must not be used: refused before a prompt is sent, with the reason and the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.errors import (
    AdapterError,
    ConfigError,
    DaemonError,
    DaemonExited,
    NotLoopback,
    NotOllama,
    PortTaken,
    RemoteModelRefused,
    UntrustedDaemon,
)
from ollama_adapter.system import listeners, spawning, trust
from ollama_adapter.testing import Piece, ScriptedDaemon, ScriptedRequest, json_response
from tests.serving import config_for, saying

pytestmark = pytest.mark.anyio
PROMPT = "Zaunkoenig-1177, a prompt"
STRANGER = 12345


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)


async def refusal_of(config: Config, model: str = "tiny") -> AdapterError:
    """The error that a prompt ends with: it says why and what to do, and nothing of the prompt."""
    with pytest.raises(AdapterError) as caught:
        async with OllamaAdapter(config) as adapter:
            await adapter.generate(model, PROMPT)
    error = caught.value
    assert error.hint, f"{error!r} has no remedy"
    assert PROMPT not in f"{error!r} {error} {error.hint}"
    return error


def knowing(**shown: object) -> ScriptedDaemon:
    """A daemon that says this of every model, and would answer every prompt."""

    class Knowing(ScriptedDaemon):
        def _pieces(self, request: ScriptedRequest) -> Iterable[Piece]:
            if request.path == "/api/show":
                return [json_response({"capabilities": ["completion"], **shown})]
            return super()._pieces(request)

    return Knowing(saying("yes"))


# An address outside this machine


@pytest.mark.parametrize(
    "host",
    [
        *("192.168.1.10", "10.0.0.1:11434", "http://ollama.example.org", "example.org:80"),
        *("127.0.0.1.example.org", "127.1", "0x7f000001", "2130706433", "127.0.0.2", "localhost."),
        *("[fe80::1]:11434", "[::ffff:10.0.0.1]", "169.254.169.254", "user@127.0.0.1", "ollama"),
    ],
)
def test_an_address_elsewhere_is_refused_before_anything_is_opened(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises((NotLoopback, ConfigError)) as caught:
        OllamaAdapter()
    assert caught.value.hint


def test_an_address_elsewhere_is_refused_in_code_and_in_a_file() -> None:
    for make in (
        lambda: DaemonConfig(host="10.0.0.1"),
        lambda: Config.parse('[daemon]\nhost = "10.0.0.1"'),
        lambda: Config.parse("", {"OLLAMA_ADAPTER_DAEMON_HOST": "10.0.0.1"}),
    ):
        with pytest.raises(NotLoopback) as caught:
            make()
        assert caught.value.hint


# A model that runs elsewhere


@pytest.mark.parametrize(
    "model", ["gpt-oss:120b-cloud", "x:cloud", "ns/x:CLOUD", "registry.example.org/a/b:1-Cloud"]
)
async def test_a_name_of_the_cloud_is_refused_before_anything_is_sent(model: str) -> None:
    async with knowing() as daemon:
        error = await refusal_of(config_for(daemon), model)
        assert isinstance(error, RemoteModelRefused)
        assert {each.path for each in daemon.requests} <= {"/api/version"}


@pytest.mark.parametrize("field", ["remote_host", "remote_model"])
async def test_a_model_with_a_remote_host_is_refused_before_a_prompt(field: str) -> None:
    async with knowing(**{field: "https://models.example.org"}) as daemon:
        error = await refusal_of(config_for(daemon))
        assert isinstance(error, RemoteModelRefused)
        assert daemon.generations() == []
        with pytest.raises(RemoteModelRefused):
            async with OllamaAdapter(config_for(daemon)) as adapter:
                await adapter.embed("tiny", PROMPT)
        assert daemon.generations() == []


# A program, a store


def config_of(program: Path, **settings: object) -> Config:
    told: dict[str, object] = {"mode": DaemonMode.OLLAMA, "ollama_path": str(program)}
    told |= {"sandbox": "none", "restart_tries": 1, "start_timeout_s": 60.0}
    return Config(daemon=DaemonConfig(**(told | settings)))  # type: ignore[arg-type]


def install(place: Path, text: str) -> Path:
    """A program `ollama`, with a runner beside it as Ollama has one."""
    program, runner = place / "bin" / "ollama", place / "lib" / "ollama" / "llama-server"
    for each, content in ((program, text), (runner, "")):
        each.parent.mkdir(parents=True, mode=0o755)
        each.write_text(content)
        each.chmod(0o755)
    return program


STARTED = f"#!{sys.executable}\nimport pathlib, sys\npathlib.Path(__file__ + '.started').touch()\n"


@pytest.mark.parametrize(
    "place",
    ["bin/ollama", "bin", "lib/ollama", "lib/ollama/llama-server"],
)
async def test_a_program_that_others_may_replace_is_not_started(place: str, tmp_path: Path) -> None:
    program = install(tmp_path, STARTED)
    (tmp_path / place).chmod(0o777)
    error = await refusal_of(config_of(program))
    assert isinstance(error, UntrustedDaemon)
    assert str(tmp_path / place) in str(error)
    assert "chmod o-w" in error.hint
    assert not (tmp_path / "bin/ollama.started").exists()


@pytest.mark.parametrize(
    "place", ["", "blobs", "manifests/a/b", "blobs/sha256-1", "manifests/a/b/c"]
)
async def test_a_store_that_anybody_may_change_is_not_used(place: str, tmp_path: Path) -> None:
    program, store = install(tmp_path, STARTED), tmp_path / "models"
    for file in ("blobs/sha256-1", "manifests/a/b/c"):
        (store / file).parent.mkdir(parents=True)
        (store / file).touch(0o644)
    (store / "blobs/sha256-2").symlink_to("/dev/null")  # which everybody may write
    trust.check_store(store)
    (store / place).chmod(0o777)
    error = await refusal_of(config_of(program, models_dir=str(store)))
    assert isinstance(error, UntrustedDaemon)
    assert str(store / place) in str(error)
    assert "chmod -R o-w" in error.hint
    assert not (tmp_path / "bin/ollama.started").exists()


def test_a_store_in_a_directory_that_is_open_to_all_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "open/models").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UntrustedDaemon, match=str(tmp_path / "open")):
        trust.check_store(tmp_path / "open/models")
    (tmp_path / "open").chmod(0o1777)  # as /tmp: nobody can replace what is another's
    trust.check_store(tmp_path / "open/models")


WEB_SERVER = f"""#!{sys.executable}
import http.server, os
host, port = os.environ["OLLAMA_HOST"].split(":")
http.server.HTTPServer((host, int(port)), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"#!{sys.executable}\n", DaemonExited, id="ends at once"),
        pytest.param(WEB_SERVER, NotOllama, id="a web server"),
        pytest.param("no program\n", DaemonError, id="a text"),
    ],
)
async def test_a_program_that_is_not_ollama_is_said_so(
    text: str, expected: type[AdapterError], tmp_path: Path
) -> None:
    program = install(tmp_path, text)
    error = await refusal_of(config_of(program))
    assert isinstance(error, expected)
    if expected is NotOllama:
        assert str(program) in str(error)
        assert "ollama_path" in error.hint


# Somebody else's daemon


@pytest.fixture
def forged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the kernel's table say that a stranger listens on a port."""

    def forge(port: int) -> None:
        line = f"0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 {STRANGER} 0 1"
        (tmp_path / "tcp").write_text(f"head\n{line}\n")
        monkeypatch.setattr(listeners, "AF_NETLINK", 255)  # a kernel that has but its tables
        monkeypatch.setattr(listeners, "TABLES", (tmp_path / "tcp",))

    return forge


async def test_a_daemon_of_another_user_is_not_even_asked(forged: Callable[[int], None]) -> None:
    async with knowing() as daemon:
        forged(daemon.port)
        error = await refusal_of(config_for(daemon))
        assert isinstance(error, UntrustedDaemon)
        assert f"adopt_uids = [{STRANGER}]" in error.hint
        assert daemon.requests == []


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root can be two")
async def test_a_daemon_that_really_is_another_users() -> None:
    code = (
        "import os, socket; os.setgid(12345); os.setuid(12345);"
        "server = socket.create_server(('127.0.0.1', 0));"
        "print(server.getsockname()[1], flush=True); server.accept(); print('accepted')"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        config = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
        error = await refusal_of(config)
        other.kill()
        assert other.stdout.read() == "", "it was connected to"
    assert isinstance(error, UntrustedDaemon)
    assert f"uid {STRANGER}" in str(error)


async def test_who_took_the_port_before_the_daemon_could_gets_no_prompt(
    tmp_path: Path, forged: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger answers in the place of the daemon that we are starting."""
    program = install(tmp_path, f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    async with knowing() as squatter:
        forged(squatter.port)
        monkeypatch.setattr(spawning, "find_free_port", lambda: squatter.port)
        error = await refusal_of(config_of(program))
        assert isinstance(error, PortTaken)
        assert squatter.generations() == []
