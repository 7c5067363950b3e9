"""An answer that was cut goes on exactly: by the ids of its tokens, wherever it was cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.embedded import ggufs
from tests.embedded.daemons import Daemon

PROMPTS = (
    "What does len do?",
    "How do I open a file and read its lines?",
    "Explain the class Path.",
    "Write about threads.",
    "dict",
    "Return a list of é 🙂 日本.",
)
GREEDY = {"temperature": 0}


def say(
    daemon: Daemon, path: str, prompt: str, model: str = "tinydoc", **fields: Any
) -> list[dict[str, Any]]:
    """The records of an answer, the last one included."""
    messages = [{"role": "user", "content": prompt}]
    said = {"messages": messages} if path == "chat" else {"prompt": prompt}
    answer = daemon.ask(f"/api/{path}", {"model": model, **said, **fields})
    assert answer.status == 200, answer.error
    return answer.lines


def text_of(records: list[dict[str, Any]]) -> str:
    return "".join(
        each["message"]["content"] if "message" in each else each["response"] for each in records
    )


def ids_of(records: list[dict[str, Any]]) -> list[int]:
    return [token for each in records for token in each.get("token_ids", ())]


def rest_of(
    daemon: Daemon, path: str, prompt: str, whole: list[dict[str, Any]], cut: int, **fields: Any
) -> list[dict[str, Any]]:
    """The records after the first `cut`, asked for anew."""
    ids = ids_of(whole[:cut])
    count = whole[-1]["eval_count"] - len(ids)
    options = {**GREEDY, **fields.pop("options", {}), "num_predict": count}
    return say(daemon, path, prompt, continue_tokens=ids, options=options, **fields)


def cuts_of(records: int, scaled: Callable[[int], int]) -> list[int]:
    """Every index in the full run, a handful else."""
    step = 1 if scaled(100) == 100 else max(1, records // 4)
    return list(range(1, records, step))


@pytest.mark.parametrize("path", ["generate", "chat"])
def test_the_rest_is_that_of_the_uncut_answer(
    path: str, daemon: Daemon, scaled: Callable[[int], int], record_property: Callable[..., None]
) -> None:
    equal, total = 0, 0
    for prompt in PROMPTS:
        whole = say(daemon, path, prompt, options={**GREEDY, "num_predict": 64})
        for cut in cuts_of(len(whole) - 1, scaled):
            total += 1
            start = text_of(whole[:cut])
            rest = rest_of(daemon, path, prompt, whole, cut)
            equal += start + text_of(rest) == text_of(whole)
    record_property("equal", f"{equal} of {total}")
    print(f"{path}: {equal} of {total} cuts equal, {100 * equal / total:.2f} %")
    assert equal == total


def parrot(daemon: Daemon, count: int, **fields: Any) -> list[dict[str, Any]]:
    options = {**GREEDY, **fields.pop("options", {}), "num_predict": count}
    return say(daemon, "generate", "x", "parrot", options=options, **fields)


def test_every_streamed_record_has_the_ids_that_make_its_text(daemon: Daemon) -> None:
    count = 3 * len(ggufs.SAID)
    records = parrot(daemon, count)
    assert text_of(records) == 3 * ggufs.SAYING
    assert ids_of(records) == 3 * ggufs.SAID
    assert all(each["token_ids"] for each in records[:-1])
    assert records[-1]["eval_count"] == count > len(records)


def test_a_character_of_several_tokens_comes_whole_and_once(daemon: Daemon) -> None:
    whole = parrot(daemon, 3 * len(ggufs.SAID))
    for cut in range(1, len(whole) - 1):
        rest = rest_of(daemon, "generate", "x", whole, cut, model="parrot")
        assert text_of(whole[:cut]) + text_of(rest) == text_of(whole)
        assert ids_of(rest) == ids_of(whole[cut:])
        assert rest[-1]["eval_count"] == len(ids_of(rest)), "more was counted than is new"


def test_ids_that_end_inside_a_character_are_refused(daemon: Daemon) -> None:
    accepted = []
    for count in range(1, len(ggufs.SAID) + 1):
        ids = ggufs.SAID[:count]
        answer = daemon.generate("x", "parrot", continue_tokens=ids, options={"num_predict": 1})
        if answer.status == 200:
            accepted.append(count)
        else:
            assert (answer.status, "inside a character" in answer.error) == (400, True)
    ends = [len(ggufs.SAYING[:end].encode()) for end in range(1, len(ggufs.SAYING) + 1)]
    assert accepted == [end - (end >= ends[-2]) for end in ends if end != ends[-3]]


STOPS = {
    "c🙂 td": "a日bé",  # found in the end
    "日bé": "a",
    "c🙂x": ggufs.SAYING,  # it only looks like it
    "td": "a日béc🙂 ",
    "da日": ggufs.SAYING[:-1],  # it begins in one round and ends in the next
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_text_is_found_across_the_seam(stop: str, daemon: Daemon) -> None:
    options = {"stop": [stop]}
    whole = parrot(daemon, 2 * len(ggufs.SAID), options=options)
    assert text_of(whole).startswith(STOPS[stop])
    for cut in range(1, len(whole) - 1):
        rest = rest_of(daemon, "generate", "x", whole, cut, model="parrot", options=options)
        assert text_of(whole[:cut]) + text_of(rest) == text_of(whole)
        assert rest[-1]["done_reason"] == whole[-1]["done_reason"]
        assert ids_of(rest) == ids_of(whole[cut:])


def test_the_rest_keeps_its_leading_space(daemon: Daemon) -> None:
    (record, _) = parrot(daemon, 1, continue_tokens=ggufs.SAID[:-2])
    assert record["response"] == " t"


def test_the_log_probabilities_go_on(daemon: Daemon) -> None:
    def numbers(records: list[dict[str, Any]]) -> list[float]:
        return [entry["logprob"] for each in records for entry in each.get("logprobs", ())]

    prompt = PROMPTS[0]
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    whole = say(daemon, "generate", prompt, options={**GREEDY, "num_predict": 24}, **fields)
    rest = rest_of(daemon, "generate", prompt, whole, 9, **fields)
    assert numbers(rest) == pytest.approx(numbers(whole[9:]), abs=1e-3)


def test_repetition_is_punished_as_if_uncut(daemon: Daemon) -> None:
    options = {**GREEDY, "repeat_penalty": 1.8, "presence_penalty": 0.5, "num_predict": 48}
    whole = say(daemon, "generate", PROMPTS[1], options=options)
    plain = say(daemon, "generate", PROMPTS[1], options={**GREEDY, "num_predict": 48})
    assert text_of(whole) != text_of(plain), "the penalty has no effect here"
    for cut in (5, 20, 40):
        rest = rest_of(daemon, "generate", PROMPTS[1], whole, cut, options=options)
        assert text_of(whole[:cut]) + text_of(rest) == text_of(whole)


def test_it_goes_on_after_raw_prompts_lists_of_tokens_and_unfinished_messages(
    daemon: Daemon,
) -> None:
    raw = {"raw": True}
    assert text_of(parrot(daemon, 1, continue_tokens=[*b"xy"], **raw)) == "a"
    listed = {"model": "parrot", "raw": True, "prompt_tokens": [120], "continue_tokens": [*b"ab"]}
    options = {**GREEDY, "num_predict": 3}
    last = daemon.ask("/api/generate", {**listed, "options": options}).lines
    assert (text_of(last), last[-1]["prompt_eval_count"]) == ("éc", 3)
    chat = daemon.chat("hello", "a", model="parrot", continue_tokens=[100], options=options)
    assert text_of(chat.lines) == "a", "the message was repeated"
    whole = daemon.chat(
        "hello", model="parrot", continue_tokens=[98], options=options, stream=False
    )
    assert (whole.json["message"]["content"], whole.json["eval_count"]) == ("éc", 3)


def test_nothing_generated_yet_is_the_whole_answer(daemon: Daemon) -> None:
    assert text_of(parrot(daemon, 3, continue_tokens=[], format="")) == "a"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "json"}, "format"),
        ({"format": {"enum": ["a"]}}, "format"),
        ({"prompt": ""}, "needs a prompt"),
        ({"prompt": "", "keep_alive": 0}, "needs a prompt"),
        ({"continue_tokens": [260]}, "invalid tokens"),
        ({"continue_tokens": [-1]}, "invalid tokens"),
        ({"continue_tokens": [1 << 40]}, "invalid tokens"),
        ({"continue_tokens": [1e300]}, "invalid tokens"),
        ({"continue_tokens": 7}, "cannot unmarshal number"),
        ({"continue_tokens": "7"}, "cannot unmarshal string"),
        ({"continue_tokens": ["7"]}, "cannot unmarshal string"),
        ({"continue_tokens": [True]}, "cannot unmarshal bool"),
        ({"continue_tokens": [1.5]}, "cannot unmarshal number 1.5"),
        ({"continue_tokens": [[1]]}, "cannot unmarshal array"),
        ({"model": "odd"}, "its vocabulary is not readable"),
        ({"continue_tokens": [65] * 300, "options": {"num_ctx": 256}}, "fill the context"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    fields: dict[str, Any], words: str, daemon: Daemon
) -> None:
    body = {"model": "tiny", "prompt": "x", "continue_tokens": [65], **fields}
    answer = daemon.ask("/api/generate", body)
    assert (answer.status, words in answer.error) == (400, True), answer.error


def test_a_chat_with_tools_cannot_be_continued(daemon: Daemon) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = daemon.chat("x", model="tools", tools=tools, continue_tokens=[65])
    assert (answer.status, "with tools" in answer.error) == (400, True)
    assert daemon.chat(model="tools", continue_tokens=[65]).status == 400
    assert daemon.chat("x", model="tools", tools=[], continue_tokens=[65]).status == 200


def test_it_goes_on_to_the_last_token_that_fits(daemon: Daemon) -> None:
    """Where prompt and answer fill the context the engine forgets a part: that is not done twice alike."""
    fields: dict[str, Any] = {"raw": True, "options": {**GREEDY, "num_ctx": 256, "num_predict": 1}}
    for ids, status in ((255 - 56, 200), (256 - 56, 400)):
        answer = daemon.generate("x" * 56, continue_tokens=[65] * ids, truncate=False, **fields)
        assert answer.status == status


def test_the_prompt_is_cut_as_the_first_time(daemon: Daemon) -> None:
    options = {"num_ctx": 128, "num_predict": 1}
    answer = daemon.generate("x" * 500, raw=True, continue_tokens=[65] * 5, options=options)
    assert answer.lines[-1]["prompt_eval_count"] == 66 + 5


@pytest.mark.parametrize("keep", [-1, 4])
def test_the_context_slides_as_if_uncut(keep: int, daemon: Daemon) -> None:
    """Small batches: the engine rounds otherwise in large ones, and what has slid is sensitive to that.

    `num_keep` below 0 keeps the prompt; the ids after it are no part of that.
    """
    options = {**GREEDY, "num_ctx": 256, "num_keep": keep, "num_batch": 2}
    fields: dict[str, Any] = {"raw": True}
    whole = say(daemon, "generate", PROMPTS[1], options={**options, "num_predict": 300}, **fields)
    for cut in (20, len(whole) // 4, len(whole) // 2):
        rest = rest_of(daemon, "generate", PROMPTS[1], whole, cut, options=options, **fields)
        assert text_of(whole[:cut]) + text_of(rest) == text_of(whole)
