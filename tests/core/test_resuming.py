"""Which ways are open to a stream that was cut, and what each sends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ollama_adapter.core.requests import Request, chat_request, generate_request
from ollama_adapter.core.resuming import (
    Asked,
    Plan,
    continue_text,
    continue_tokens,
    one_token,
    plan_ways,
    render_request,
)
from ollama_adapter.core.transcript import Transcript
from ollama_adapter.events import Channel, TokenEvent, Way

IMAGE = "aGVsbG8="
TOOL = {"type": "function", "function": {"name": "f"}}


def generate(**keywords: Any) -> Request:
    return generate_request("m", "question", keywords, "5m")


def chat(**keywords: Any) -> Request:
    messages = keywords.pop("messages", [{"role": "user", "content": "question"}])
    return chat_request("m", messages, keywords, "5m")


def delivered(
    tokens: int = 3, *, ids: bool = False, channel: Channel = Channel.TEXT, calls: Any = None
) -> Transcript:
    made = Transcript()
    for n in range(tokens):
        known = (n,) if ids else None
        made.add(
            [TokenEvent("a", 0, 0, "s", "m", channel=channel, token_ids=known, tool_calls=calls)]
        )
    return made


def planned(
    request: Request,
    transcript: Transcript | None = None,
    *,
    embedded: bool = False,
    renders: bool = True,
    most: int = 100,
) -> Plan:
    made = delivered(ids=embedded) if transcript is None else transcript
    return plan_ways(Asked.of(request), made, embedded=embedded, renders=renders, rerun_tokens=most)


def refused(plan: Plan, way: Way) -> str:
    (why,) = (each for each in plan.refusals if each.startswith(f"{way}: "))
    assert way not in plan.ways
    return why


def test_what_delivered_nothing_is_asked_anew() -> None:
    assert planned(generate(format="json"), Transcript()) == Plan((Way.ANEW,))


def test_the_embedded_daemon_goes_on_from_token_ids_first() -> None:
    assert planned(generate(temperature=0), embedded=True).ways == (Way.TOKENS, Way.RERUN, Way.TEXT)
    assert planned(chat(), embedded=True).ways == (Way.TOKENS, Way.TEXT)


def test_ids_are_of_no_use_elsewhere_or_with_one_missing() -> None:
    assert "embedded" in refused(planned(generate()), Way.TOKENS)
    partly = planned(generate(), delivered(ids=False), embedded=True)
    assert "every token" in refused(partly, Way.TOKENS)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1.0}, True),
        ({"seed": -1}, False),
        ({"temperature": 0.5}, False),
        ({}, False),
    ],
)
def test_a_second_run_is_for_deterministic_requests(options: dict[str, Any], again: bool) -> None:
    assert (Way.RERUN in planned(generate(**options)).ways) == again


def test_a_second_run_is_not_too_long() -> None:
    request = generate(temperature=0)
    assert Way.RERUN in planned(request, delivered(3), most=3).ways
    assert "resume_tokens" in refused(planned(request, delivered(4), most=3), Way.RERUN)


def test_a_seed_promises_the_same_answer() -> None:
    plan = planned(generate(seed=7), embedded=True)
    assert plan.ways == (Way.RERUN,)
    assert "seed" in refused(plan, Way.TOKENS)
    assert "seed" in refused(plan, Way.TEXT)
    assert Way.TOKENS in planned(generate(seed=7, temperature=0), embedded=True).ways


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (generate(format="json"), "format"),
        (chat(format={"type": "object"}), "format"),
        (chat(tools=[TOOL]), "tool"),
        (generate(images=[IMAGE]), "image"),
        (chat(messages=[{"role": "user", "content": "?", "images": [IMAGE]}]), "image"),
    ],
)
def test_what_cannot_be_continued_is_refused(request_: Request, word: str) -> None:
    plan = planned(request_, embedded=True)
    assert plan.ways == ()
    assert word in refused(plan, Way.TOKENS)
    assert word in refused(plan, Way.TEXT)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (generate(suffix="end"), "suffix"),
        (generate(context=[1, 2]), "context"),
        (chat(think=True), "thinking"),
    ],
)
def test_what_cannot_be_rendered_is_refused(request_: Request, word: str) -> None:
    assert word in refused(planned(request_), Way.TEXT)


def test_thinking_and_tool_calls_that_came_are_not_put_back() -> None:
    thought = planned(chat(), delivered(channel=Channel.THINKING))
    assert "thinking" in refused(thought, Way.TEXT)
    called = planned(chat(), delivered(channel=Channel.TOOL_CALLS, calls=[{}]))
    assert "tool" in refused(called, Way.TEXT)


def test_an_old_daemon_renders_no_prompt_but_a_raw_one_needs_none() -> None:
    assert "too old" in refused(planned(generate(), renders=False), Way.TEXT)
    assert Way.TEXT in planned(generate(raw=True), renders=False).ways


# --- the requests -----------------------------------------------------------------------------------


def sent(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(request.body)
    return body


def test_going_on_from_ids_is_the_same_request_with_the_ids() -> None:
    request = chat(temperature=0, num_predict=10)
    going_on = continue_tokens(Asked.of(request), [1, 2, 3], 7)
    assert going_on.path == "/api/chat"
    assert sent(going_on) == sent(request) | {
        "continue_tokens": [1, 2, 3],
        "options": {"temperature": 0, "num_predict": 7},
    }


def test_ids_are_read_one_by_one_where_that_is_asked_for() -> None:
    going_on = continue_tokens(Asked.of(generate()), [1], None, stepwise=True)
    assert sent(going_on) == sent(generate()) | {"continue_tokens": [1], "continue_stepwise": True}


def test_going_on_from_text_is_the_rendered_prompt_and_the_text_raw() -> None:
    request = chat(stop=["x"], top_logprobs=3, keep_alive="1m", think=False, shift=False)
    going_on = continue_text(Asked.of(request), "<user>question<assistant>", "so far", None)
    assert (going_on.path, going_on.model) == ("/api/generate", "m:latest")
    assert sent(going_on) == {
        "model": "m:latest",
        "prompt": "<user>question<assistant>so far",
        "raw": True,
        "keep_alive": "1m",
        "truncate": False,
        "shift": False,
        "logprobs": True,
        "top_logprobs": 3,
        "options": {"stop": ["x"]},
    }


def test_what_may_still_come_is_what_was_asked_for_less_what_came() -> None:
    assert Asked.of(generate(num_predict=10)).remaining(4) == 6
    assert Asked.of(generate(num_predict=10)).remaining(12) == 0
    for unlimited in (generate(), generate(num_predict=-1), generate(num_predict=0)):
        assert Asked.of(unlimited).remaining(4) is None


def test_no_repr_shows_what_was_asked() -> None:
    assert "question" not in repr(Asked.of(generate()))


def test_a_look_at_one_token_and_at_the_prompt_change_nothing_else() -> None:
    request = generate(temperature=1.0, top_k=3, num_predict=50)
    looked = sent(one_token(request))
    assert looked["options"] == {"temperature": 0, "top_k": 3, "num_predict": 1}
    assert looked["stream"] is False
    rendered = render_request(Asked.of(request))
    assert rendered.renders
    assert sent(rendered) == sent(request) | {"_debug_render_only": True, "stream": False}
