"""`models`, `ps`, `rm` and `status` on a scripted daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rich.console import Console

from ollama_adapter.cli.models import add_row, drop_columns, listing
from ollama_adapter.testing import (
    Piece,
    PretendModel,
    PretendOllama,
    ScriptedDaemon,
    ScriptedRequest,
    json_response,
    response,
)
from tests.cli.command import Machine

pytestmark = pytest.mark.anyio

TAGS: dict[str, Any] = {
    "models": [
        {
            "name": "llama3.2:1b",
            "size": 1_321_098_329,
            "modified_at": "2026-03-01T10:00:00.123456789Z",
            "details": {"parameter_size": "1.2B", "quantization_level": "Q8_0", "family": "llama"},
        },
        {"name": "odd\x1b[2J", "size": "?", "details": None, "modified_at": 7},
        {"name": "tinydoc:latest", "size": 1_129_632},
    ]
}
PS: dict[str, Any] = {
    "models": [
        {
            "name": "llama3.2:1b",
            "size": 2_000_000_000,
            "size_vram": 500_000_000,
            "context_length": 4096,
            "expires_at": "2318-01-01T00:00:00Z",
        },
    ]
}
SIZES = {"here": 400, "there": 300}


def housekeeping(request: ScriptedRequest) -> list[Piece]:
    if request.json()["model"] == "gone":
        return [json_response({"error": "model 'gone' not found"}, 404)]
    return [response(b"")]


def without_memory(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the daemon lists them."""
    ours = ("resident", "fits", "advisory", "needs_bytes", "reason")
    return [{key: value for key, value in each.items() if key not in ours} for each in lines]


async def test_models(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping) as daemon:
        machine.port, daemon.models = daemon.port, TAGS["models"]
        done = await machine.run("models")
    heading, *rows = done.out.splitlines()
    assert heading.split()[:3] == ["NAME", "SIZE", "PARAMETERS"]
    words = rows[0].split()
    assert words[:6] == ["llama3.2:1b", "1.2", "GiB", "1.2B", "Q8_0", "llama"]
    assert "MB" not in done.out and "GB" not in done.out  # beside memory, in one unit
    assert words[6] == "fits:" and words[-2:] == ["2026-03-01", "10:00"]
    assert "odd␛[2J" in rows[1] and "\x1b" not in done.out
    assert "knows nothing" in done.err


async def test_tables_in_a_pipe_have_no_blanks_at_the_ends_of_their_lines(machine: Machine) -> None:
    async with PretendOllama(*SIZES) as daemon:
        machine.port = daemon.port
        assert (await machine.run("load", "here")).code == 0
        for command in (["models"], ["ps"], ["status"], ["tier"], ["plan", "there"], ["doctor"]):
            lines = (await machine.run(*command)).out.splitlines()
            assert len(lines) > 1, command
            assert lines == [each.rstrip() for each in lines], command


async def test_models_as_json(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping) as daemon:
        machine.port, daemon.models = daemon.port, TAGS["models"]
        done = await machine.run("models", "--json")
    assert without_memory(done.lines) == TAGS["models"] and done.err == ""


async def test_which_models_fit_and_which_are_there(machine: Machine) -> None:
    models = [PretendModel(name, size_bytes=size << 20) for name, size in SIZES.items()]
    async with PretendOllama(*models) as daemon:
        machine.port = daemon.port
        assert (await machine.run("load", "here")).code == 0
        listed = {each["name"]: each for each in (await machine.run("models", "--json")).lines}
        done = await machine.run("models")
    assert listed["here:latest"]["resident"] and listed["here:latest"]["needs_bytes"] > 400 << 20
    assert (listed["there:latest"]["resident"], listed["there:latest"]["fits"]) == (False, True)
    assert "in use: 4" in done.out and "fits: " in done.out


async def test_a_model_beyond_a_budget_that_is_advice_is_not_said_to_fit(machine: Machine) -> None:
    async with PretendOllama(PretendModel("huge:70b", size_bytes=4000 << 30)) as daemon:
        machine.port = daemon.port
        (line,) = (await machine.run("models", "--json")).lines
        done = await machine.run("models")
        plan = await machine.run("plan", "huge:70b")
        loaded = await machine.run("load", "huge:70b")
    assert (line["fits"], line["advisory"]) == (False, True)
    assert "over budget: 4000" in done.out and "fits" not in done.out
    assert "only advice: this daemon is not ours alone" in done.err
    assert (
        plan.code == 1 and "not within the budget, which is only advice here: its file" in plan.out
    )
    assert "yes" not in plan.out and "and after" in plan.out
    assert loaded.code == 0


async def test_ps(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping) as daemon:
        machine.port, daemon.resident = daemon.port, PS["models"]
        done = await machine.run("ps")
        (line,) = (await machine.run("ps", "--json")).lines
    row = done.out.splitlines()[1].split()
    assert row == [
        "llama3.2:1b",
        "1.4",
        "GiB",
        "476",
        "MiB",
        "25",
        "%",
        "4096",
        "for",
        "ever",
        "pinned",
    ]
    assert line == PS["models"][0] | {
        "ram_bytes": 1_500_000_000,
        "vram_bytes": 500_000_000,
        "busy": None,
        "pinned": True,
    }


async def test_ps_starts_nothing(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping) as daemon:
        machine.port = daemon.port
    done = await machine.run("ps")
    assert (done.code, done.out) == (0, "")
    assert "no model is in memory: nothing listens" in done.err


async def test_rm(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping) as daemon:
        machine.port = daemon.port
        done = await machine.run("rm", "a", "gone", "b")
    assert done.out == "removed a\nremoved b\n"
    assert done.code == 1 and "there is no model gone" in done.err
    assert [each.method for each in daemon.requests if each.path == "/api/delete"] == ["DELETE"] * 3


async def test_status_of_a_daemon_that_runs(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping, version="0.5.0") as daemon:
        machine.port = daemon.port
        done = await machine.run("status")
        (line,) = (await machine.run("status", "--json")).lines
    assert done.code == 0
    for words in (
        "adopted, ready",
        f"127.0.0.1:{daemon.port}",
        "0.5.0",
        "not sandboxed",
        "too old for",
    ):
        assert words in done.out
    assert (line["ready"], line["origin"], line["plan"]) == (
        True,
        "adopted",
        "use the daemon that runs",
    )
    assert line["models_dir"] == str(machine.home / ".local/share/ollama-adapter/models")


async def test_status_without_any_daemon(machine: Machine) -> None:
    async with ScriptedDaemon(housekeeping) as daemon:
        machine.port = daemon.port
    done = await machine.run("status")
    assert done.code == 1
    assert "none runs" in done.out and "install" in done.out
    (line,) = (await machine.run("status", "--json")).lines
    assert (line["ready"], line["plan"]) == (False, "")


async def test_status_starts_nothing_and_says_what_would_be(machine: Machine) -> None:
    machine.environment["OLLAMA_ADAPTER_DAEMON_MODE"] = "embedded"
    done = await machine.run("status")
    assert done.code == 0
    assert "none runs" in done.out and "would start the embedded daemon" in done.out


async def test_status_of_a_stranger_on_the_port(machine: Machine) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        machine.port = server.sockets[0].getsockname()[1]
        done = await machine.run("status")
    assert done.code == 1 and "is not Ollama" in done.out


async def test_every_command_has_help_with_examples(machine: Machine) -> None:
    top = await machine.run("--help")
    assert top.code == 0
    names = [
        "run",
        "status",
        "models",
        "ps",
        "plan",
        "load",
        "unload",
        "pin",
        "unpin",
        "import",
        "rm",
        "purge",
        "embed",
    ]
    for name in names:
        assert f"\n  {name} " in top.out
        done = await machine.run(name, "--help")
        assert done.code == 0
        assert f"Examples:\n    ollama-adapter {name}" in done.out
        assert "--json" in done.out


async def test_a_shell_completes_commands_and_options(machine: Machine) -> None:
    for shell in ("bash", "zsh", "fish"):
        script = await machine.run("completion", shell)
        assert script.code == 0 and f"_OLLAMA_ADAPTER_COMPLETE={shell}_complete" in script.out
    machine.environment |= {
        "_OLLAMA_ADAPTER_COMPLETE": "bash_complete",
        "COMP_WORDS": "ollama-adapter plan --n",
        "COMP_CWORD": "2",
    }
    assert (await machine.run()).out == "plain,--num-ctx\n"
    machine.environment |= {"COMP_WORDS": "ollama-adapter un", "COMP_CWORD": "1"}
    assert (await machine.run()).out == "plain,unload\nplain,unpin\n"


async def test_the_version(machine: Machine) -> None:
    done = await machine.run("--version")
    assert done.code == 0 and done.out.startswith("ollama-adapter ")


@pytest.mark.parametrize(
    ("width", "headings"),
    [(80, ["NAME", "FAMILY", "MEMORY"]), (30, ["NAME", "MEMORY"]), (5, ["NAME", "MEMORY"])],
)
def test_where_it_is_narrow_a_table_does_without_a_column_rather_than_break_its_names(
    width: int, headings: list[str]
) -> None:
    table = listing("NAME", "FAMILY", "MEMORY")
    add_row(table, ["a-name:of-17-cells", "a family", "fits"])
    where = Console(width=width)
    drop_columns(table, where, ["FAMILY"])
    assert [each.header for each in table.columns] == headings
    with where.capture() as shown:
        where.print(table)
    if width > 5:
        assert "a-name:of-17-cells" in shown.get() and "fits" in shown.get()
