"""Bad input and bad daemons: what happened, why, what to do; a code that is not 0; no traceback."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

from ollama_adapter.testing import (
    STREAM_HEAD,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
    json_response,
    response,
    stream,
)
from tests.cli.command import WATCHDOG_S, Done, Machine, finish, interrupt
from tests.serving import saying, sending

pytestmark = pytest.mark.anyio


def fault(done: Done, *words: str, code: int = 1, hint: bool = True) -> None:
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert done.err.startswith("error: ") or "\nerror: " in done.err, done.err
    assert ("\nhint: " in done.err) is hint, done.err
    for each in words:
        assert each in done.err, done.err


async def test_an_unknown_model(machine: Machine) -> None:
    missing = json_response({"error": "model 'nope' not found"}, 404)
    async with ScriptedDaemon(sending(missing)) as daemon:
        machine.port = daemon.port
        fault(
            await machine.run("run", "nope", "hi"),
            "there is no model nope",
            "ollama-adapter models",
        )
        fault(await machine.run("run", "hi"), "that is the default")
        fault(await machine.run("rm", "nope"), "there is no model nope")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", ""], "the prompt is empty"),
        (["run", "m", "", "--chat"], "the prompt is empty"),
        (["run", "m"], "the prompt is empty"),  # "m" is the prompt; see below
        (
            ["run", "m", "hi", "-o", "temperature=abc"],
            "temperature must be a finite number, not 'abc'",
        ),
        (["run", "m", "hi", "-o", "temprature=1"], "there is no option temprature"),
        (["run", "m", "hi", "-o", "seed"], "is no option"),
        (["run", "m", "hi", "--seed", "1", "-o", "seed=2"], "seed is given twice"),
        (["run", "m", "hi", "--keep-alive", "soon"], "keep_alive must be seconds"),
        (["run", "m", "hi", "--format", "nowhere.json"], "cannot be read"),
        (["run", "m", "hi", "--raw", "--chat"], "--raw cannot be combined with --chat"),
        (["run", "bad name", "hi"], "the model name cannot be used"),
        (["run", "tell", "me", "more"], "3 arguments are too many"),
        (["embed", "m"], "no text"),
        (["embed", "m", ""], "no text"),
        (["rm", "-y", "bad name"], "the model name cannot be used"),
        (["import", "x.gguf", "bad name"], "the model name cannot be used"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_anything_is_sent(
    machine: Machine, arguments: list[str], words: str
) -> None:
    async with ScriptedDaemon(saying("never")) as daemon:
        machine.port = daemon.port
        if arguments == ["run", "m"]:
            arguments = ["run", "-m", "m"]
        done = await machine.run(*arguments)
    code = 2
    assert done.code == code and words in done.err, (done.code, done.err)
    assert "error: " in done.err and "Traceback" not in done.err
    assert done.out == ""
    assert daemon.requests == []


async def test_text_that_is_not_utf_8(machine: Machine) -> None:
    fault(await machine.run("run", "m", b"caf\xe9"), "not UTF-8: byte 0xe9 at position 3", code=2)
    fault(await machine.run("run", "-", stdin=b"\xff"), "the standard input is not UTF-8", code=2)
    fault(await machine.run("embed", "m", b"\xff"), "not UTF-8", code=2)
    fault(await machine.run("run", "m", "p", "--system", b"\xff"), "--system is not UTF-8", code=2)


async def test_a_prompt_longer_than_the_context_names_both_numbers(machine: Machine) -> None:
    words = "the request exceeds the available context size"
    body = {"error": {"message": words, "n_prompt_tokens": 5000, "n_ctx": 4096}}
    async with ScriptedDaemon(sending(json_response(body, 400))) as daemon:
        machine.port = daemon.port
        fault(
            await machine.run("run", "m", "hi"),
            "5000 tokens",
            "4096 fit",
            "--num-ctx",
            "--truncate",
        )


async def test_a_daemon_that_answers_garbage(machine: Machine) -> None:
    for garbage in (b"garbage\r\n\r\n", stream([]), response(b"<html>\n", 200)):
        async with ScriptedDaemon(sending(garbage)) as daemon:
            machine.port = daemon.port
            done = await machine.run("run", "m", "hi")
            fault(done, hint="hint" in done.err)
            assert done.out == ""


async def test_a_stream_without_its_end_is_no_success(machine: Machine) -> None:
    async with ScriptedDaemon(sending(stream(answer(["so ", "far"])[:-1]))) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
        fault(done, "after 2 tokens")
        assert done.out == "so far\n"
        lines = (await machine.run("run", "m", "hi", "--json")).lines
    assert [each["type"] for each in lines] == ["token", "token", "statistics", "error"]
    assert lines[2]["finish"] == "failed"
    assert lines[3]["error"] == "StreamInterrupted" and lines[3]["hint"]


async def test_invalid_utf_8_from_the_daemon(machine: Machine) -> None:
    def script(_: ScriptedRequest) -> Iterable[Piece]:
        line = b'{"response":"\xff","done":false}\n'
        return [
            STREAM_HEAD,
            chunk({"response": "ok ", "done": False}),
            b"%x\r\n%b\r\n" % (len(line), line),
        ]

    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
    fault(done, hint="hint" in done.err)
    assert done.out == "ok \n"


async def test_a_port_that_something_else_holds(machine: Machine) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        machine.port = server.sockets[0].getsockname()[1]
        fault(await machine.run("run", "m", "hi"), "is not Ollama", "OLLAMA_HOST")


async def test_no_engine(machine: Machine) -> None:
    machine.environment |= {"OLLAMA_ADAPTER_DAEMON_MODE": "ollama", "PATH": str(machine.home)}
    fault(await machine.run("run", "m", "hi"), "nothing to spawn", "install")
    done = await machine.run("run", "m", "hi", "--json")
    assert done.code == 1 and done.err == ""
    assert [(each["type"], each["error"]) for each in done.lines] == [("error", "DaemonNotFound")]


async def test_broken_files_are_not_imported(machine: Machine) -> None:
    store = machine.home / "store"
    machine.environment["OLLAMA_MODELS"] = str(store)
    broken, empty = machine.home / "broken.gguf", machine.home / "empty.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 100)
    empty.write_bytes(b"")
    for path in (broken, empty, machine.home):
        fault(await machine.run("import", str(path), "m"), hint=True)
    fault(
        await machine.run("import", "nowhere.gguf", "m"), "nowhere.gguf: No such file", hint=False
    )
    assert not store.exists()


async def test_a_pipe_is_not_waited_for_when_it_is_to_be_imported(machine: Machine) -> None:
    pipe = machine.home / "pipe.gguf"
    os.mkfifo(pipe)
    fault(await machine.run("import", str(pipe)), "pipe.gguf is not a regular file", hint=True)
    fault(await machine.run("import", "/dev/zero", "m"), "is not a regular file", hint=True)
    done = await machine.run("import", "")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: no file was named")


async def test_settings_that_cannot_be_used(machine: Machine) -> None:
    settings = machine.home / "settings.toml"
    machine.environment["OLLAMA_ADAPTER_CONFIG"] = str(settings)
    settings.write_text("not toml")
    fault(await machine.run("run", "hi"), f"the settings file {settings} is not TOML", "quotes")
    settings.write_text("[daemon]\nprot = 1")
    fault(await machine.run("models"), "there is no setting daemon.prot")
    settings.write_bytes(b"\xff")
    fault(await machine.run("status"), f"{settings} is not UTF-8: byte 0xff at position 0")


async def test_a_daemon_elsewhere_is_refused(machine: Machine) -> None:
    machine.environment["OLLAMA_HOST"] = "192.0.2.7:11434"
    fault(await machine.run("run", "hi"), "192.0.2.7 is not on this machine")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run", "--nonsense"], ["run", "--seed", "x", "p"]]
)
async def test_wrong_usage_ends_with_2(machine: Machine, arguments: list[str]) -> None:
    done = await machine.run(*arguments)
    assert done.code == 2
    assert "Usage: ollama-adapter" in done.err and "Traceback" not in done.err


async def test_closed_standard_files_do_no_harm(machine: Machine) -> None:
    async with ScriptedDaemon(saying("ok")) as daemon:
        machine.port = daemon.port
        script = f'"{sys.executable}" -m ollama_adapter run m hi <&- >&- 2>&-'
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", script, env=machine.whole_environment, cwd=machine.home
        )
        assert await process.wait() == 0
    assert len(daemon.generations()) == 1


async def test_a_full_disk_is_an_error(machine: Machine) -> None:
    async with ScriptedDaemon(saying("ok")) as daemon:
        machine.port = daemon.port
        full = os.open("/dev/full", os.O_WRONLY)
        process = await machine.start("run", "m", "hi", out=full)
        os.close(full)
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"No space left" in err and b"Traceback" not in err


WORDY = ["--help", "status", "models", "bogus"]


@pytest.mark.parametrize("command", WORDY)
@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        (">/dev/full", 1, "error: No space left on device\n"),
        ("", 141, ""),  # the reader has gone
        (">/dev/null 2>/dev/full", 0, ""),
        (">/dev/null 2>&-", 0, ""),
    ],
)
async def test_who_takes_no_words_is_told_by_the_code_alone(
    machine: Machine, command: str, where: str, code: int, said: str
) -> None:
    """A full disk, a reader that has gone, and words for people that nobody takes."""
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'"{sys.executable}" -m ollama_adapter {command} {where}'),
        env=machine.whole_environment,
        cwd=machine.home,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    _, err = await process.communicate()
    if command == "bogus":  # its words are on stderr, and it fails anyway
        assert process.returncode == 2
    else:
        assert (process.returncode, err.decode()) == (code, said)


@pytest.mark.parametrize("absent", ["click", "rich"])
def test_without_its_extra_the_command_says_how_to_install_it(absent: str) -> None:
    script = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from ollama_adapter.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["the command needs: pip install 'ollama-adapter[cli]'"]


@pytest.mark.parametrize("imported", ["typing", "click", "asyncio", "ollama_adapter.session"])
async def test_ctrl_c_in_the_middle_of_an_import_shows_no_fault(
    machine: Machine, imported: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", "-m", "ollama_adapter", "run", "hi"),
        env=machine.whole_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(WATCHDOG_S):
        while (await process.stderr.readline()).split()[-1:] != [imported.encode()]:
            assert process.returncode is None
    interrupt(process)
    done = await finish(process)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err and "KeyboardInterrupt" not in done.err


async def test_a_home_that_cannot_be_written_is_an_error_that_status_and_doctor_foresee(
    machine: Machine,
) -> None:
    blocked = machine.home / "blocked"
    blocked.write_text("a file where a directory should be")
    machine.environment |= {
        "XDG_STATE_HOME": str(blocked / "state"),
        "OLLAMA_ADAPTER_DAEMON_MODE": "embedded",
    }
    done = await machine.run("run", "hi there")
    fault(done, "cannot be made", "set XDG_STATE_HOME to a directory")
    message = done.err.splitlines()[0].removeprefix("error: ")
    status, (line,) = await machine.run("status"), (await machine.run("status", "--json")).lines
    assert status.code == 1
    assert "would fail: set XDG_STATE_HOME to a directory" in status.out
    assert (line["plan"], line["problem"]) == ("", message)
    doctor = await machine.run("doctor")
    assert doctor.code == 1
    assert "no daemon" in doctor.out and message in doctor.out
