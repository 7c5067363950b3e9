"""/api/generate and /api/chat: a job run, its records handed to the socket one by one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from ollama_adapter.embedded import prompts
from ollama_adapter.embedded.child import Runner
from ollama_adapter.embedded.http import Exchange
from ollama_adapter.embedded.records import Event, decode_event
from ollama_adapter.embedded.requests import parse_asked
from ollama_adapter.embedded.service import RUNNER_DIED, Job, Service
from ollama_adapter.embedded.tools import ToolStream
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.embedded.wire import Reply, RunnerGone

NOT_ENFORCED: Final = "the engine cannot hold the answer to this format"


async def generate(service: Service, exchange: Exchange) -> None:
    """/api/generate"""
    await _answer(service, exchange, chat=False)


async def chat(service: Service, exchange: Exchange) -> None:
    """/api/chat"""
    await _answer(service, exchange, chat=True)


async def _answer(service: Service, exchange: Exchange, *, chat: bool) -> None:
    job = service.prepare(parse_asked(await exchange.body(), chat=chat))
    empty = job.asked.is_empty
    if empty and job.asked.keep_alive == 0:
        service.scheduler.unload(job.model)
        return await exchange.json(job.answer.short("unload"))
    try:
        async with exchange.until_gone(), service.lease(job, slot=not empty) as loaded:
            if empty:
                return await exchange.json(job.answer.short("load"))
            if job.body.get("_debug_render_only"):
                text = await prompts.rendered(job, loaded.runner)
                return await exchange.json(job.answer.rendered(text))
            before = loaded.runner.grammar_failures
            async with await prompts.begin(job, loaded.runner) as reply:
                events = _events(job, loaded.runner, before, reply)
                await (_stream if job.asked.stream else _collect)(job, exchange, events)
    except RunnerGone:
        raise ApiError(500, RUNNER_DIED) from None


async def _events(job: Job, runner: Runner, failures: int, reply: Reply) -> AsyncIterator[Event]:
    """The runner's events to the last one; errors of the engine are raised.

    `failures` is what the runner had of them before it saw this job's grammar.
    """
    tools = ToolStream() if job.body.get("tools") else None
    async for data in reply.events():
        for event in tools.feed(data) if tools else (decode_event(data),):
            if event.error is not None:
                raise _engine_error(event.error)
            if job.asked.schema is not None:
                if event.stop:
                    await runner.call("/tokenize", {})  # by its answer the log has come too
                if runner.grammar_failures != failures:
                    raise ApiError(500, NOT_ENFORCED)
            yield event
            if event.stop:
                return
    raise RunnerGone


async def _stream(job: Job, exchange: Exchange, events: AsyncIterator[Event]) -> None:
    answer = job.answer
    async for event in events:
        if event.stop:
            await exchange.record(answer.last(event), last=True)
        elif record := answer.record(event):
            await exchange.record(record)


async def _collect(job: Job, exchange: Exchange, events: AsyncIterator[Event]) -> None:
    text: list[str] = []
    entries: list[dict[str, Any]] | None = None if job.asked.top_logprobs is None else []
    calls: list[dict[str, Any]] | None = None
    async for event in events:
        calls = event.tool_calls or calls
        if event.stop:
            last = job.answer.last(event, "".join(text), entries, calls)
            await exchange.json(last)
        elif event.content:
            text.append(job.answer.text(event))
            if entries is not None:
                entries += job.answer.entries(event)


def _engine_error(error: dict[str, Any]) -> ApiError:
    code = error.get("code")
    return ApiError(
        code if isinstance(code, int) else 500, msgspec.json.encode({"error": error}).decode()
    )
