"""The pretended daemon answers what was asked of the real one in the shape in which that one answered.

The requests are those of the recordings; headers, fields, their order, their kinds, errors and ends must
be the same. Only what a model says is its own.
"""

from __future__ import annotations

import json

import pytest

from ollama_adapter.testing import PretendModel, PretendOllama
from tests.contract.replay import Recording, load_recordings
from tests.testing.wire import Conversation, Heard, ask, shape

pytestmark = pytest.mark.anyio

RECORDINGS = {each.name: each for each in load_recordings()}
PLAIN = ("completion",)
THINKER = PretendModel("thinkcyc", length=3, thinking=2, capabilities=("completion", "thinking"))
MODELS = (
    *(PretendModel(name, capabilities=PLAIN) for name in ("tiny", "markov", "forever", "slow")),
    THINKER,
    PretendModel("tinyembed", capabilities=("embedding",)),
)
ALIKE = {
    "chat": """
        chat-404 chat-cloudmodel-cloud-off chat-empty-load chat-empty-unload chat-no-model
        chat-nostream chat-on-embed-model chat-tools
    """,
    "generate": """
        content-type-ignored generate-cloudmodel-cloud-off generate-debug-render
        generate-deleted-loaded generate-empty-load generate-format-schema generate-images-badb64
        generate-keepalive0 generate-logprobs generate-logprobs-nostream generate-logprobs-notop
        generate-name-field generate-num_predict-1 generate-on-embed-model generate-raw
        generate-raw-system-400 generate-suffix generate-toplogprobs-20 generate-toplogprobs-21
        generate-toplogprobs-without-logprobs generate-unload model-case-insensitive opt-num_ctx-big
        unknown-option
    """,
    "thinking": """
        generate-think-badvalue generate-think-false generate-think-unsupported think-chat-False
        think-chat-None think-chat-True think-chat-nostream think-generate-False think-generate-None
        think-generate-True
    """,
    "wrong bodies": """
        err-bigint err-empty-body err-empty-model err-invalid-json err-invalid-model-name
        err-not-json err-options-type err-prompt-type err-stream-type err-unknown-model
        keepalive-bad keepalive-bad2
    """,
    "vectors": """
        embed embed-404 embed-bad embed-batch embed-batch-dim4 embed-empty embed-on-completion-model
        embeddings-legacy embeddings-legacy-ok
    """,
    "models and the rest": """
        copy copy-400 copy-404 delete-404 delete-empty path-404 ps-empty root show-400 show-404
        show-cloudmodel-cloud-off status tags-405 version
    """,
}


def recorded(recording: Recording) -> Heard:
    return Heard(recording.wire, recording.end)


@pytest.mark.parametrize("family", ALIKE)
async def test_answers_have_the_shapes_of_the_recorded_ones(family: str) -> None:
    ours, theirs = {}, {}
    for name in ALIKE[family].split():
        recording = RECORDINGS[name]
        async with PretendOllama(*MODELS) as daemon:
            body = recording.body.encode()
            ours[name] = shape(await ask(daemon.port, recording.path, body, recording.method))
        theirs[name] = shape(recorded(recording))
    assert ours == theirs


async def test_the_listing_of_residents_has_the_recorded_shape() -> None:
    async with PretendOllama(*MODELS) as daemon:
        await ask(daemon.port, "/api/generate", {"model": "tiny"})
        heard = await ask(daemon.port, "/api/ps", method="GET")
    assert shape(heard) == shape(recorded(RECORDINGS["ps-loaded"]))


async def test_a_connection_that_is_to_be_closed_says_so_and_is() -> None:
    recording = RECORDINGS["connection-close"]
    async with PretendOllama(*MODELS) as daemon:
        with await Conversation.open(daemon.port) as conversation:
            asked = (recording.method, recording.path, recording.body.encode())
            await conversation.say(*asked, "Connection: close")
            heard = await conversation.hear()
            assert shape(heard) == shape(recorded(recording))
            heard.end = None
            assert (await conversation.hear()).end == "EOF"
        await daemon.until(lambda: daemon.connections == 0)


async def test_a_limit_inside_a_character_leaves_it_out() -> None:
    recording = RECORDINGS["utf8-cut-midchar"]
    wide = PretendModel("utf8", capabilities=PLAIN)
    async with PretendOllama(wide) as daemon:
        for number in range(
            400
        ):  # until a prompt begins its answer with a character of several tokens
            asked = {"model": "utf8", "prompt": f"{number}", "raw": True, "logprobs": True}
            cut = await ask(daemon.port, "/api/generate", asked | {"options": {"num_predict": 1}})
            if len(cut.records()) == 1:
                break
    assert shape(cut) == shape(recorded(recording))
    assert cut.records()[0]["eval_count"] == 1


# Each fault in the shape of the trouble it plays


def _records(recording: Recording) -> int:
    return sum("error" not in each for each in recorded(recording).records())


FAULTS = [
    ("eof@{n}", "daemon-sigkill"),
    ("eof@{n}", "daemon-sigterm"),
    ("die@{n}", "daemon-sigkill"),
    ("eof@0", "sigterm-during-load"),
    ("error_line@{n}", "kill9-runner-generate"),
    ("error_line@{n}", "kill9-runner-chat"),
    ("error_line@3", "kill9-runner-generate-nostream"),
    ("no_done@{n}", "tinyraw-generate-swallowed-error"),
    ("no_done@{n}", "tinyraw-generate-swallowed-error-nostream"),
    ("repeat@1", "token-repeat-limit-generate"),
    ("repeat@0", "token-repeat-limit-generate"),
    ("repeat@1", "token-repeat-limit-chat"),
    ("repeat@1", "token-repeat-limit-generate-nostream"),
    ("503", "queue1-cold-0"),
    ("cloud", "generate-remote-nocloud"),
    ("404", "generate-deleted-loaded"),
]


@pytest.mark.parametrize(("faults", "name"), FAULTS)
async def test_a_fault_has_the_shape_of_the_recorded_trouble(faults: str, name: str) -> None:
    recording = RECORDINGS[name]
    faults = faults.format(n=_records(recording))
    model = json.loads(recording.body)["model"]
    async with PretendOllama(PretendModel(model, capabilities=PLAIN), faults=faults) as daemon:
        heard = await ask(daemon.port, recording.path, recording.body.encode())
        assert [str(each) for each in daemon.struck] == [faults]
    assert shape(heard, counted=True) == shape(recorded(recording), counted=True)


async def test_the_token_repeats_as_often_as_it_was_recorded() -> None:
    recording = RECORDINGS["token-repeat-limit-generate-nostream"]
    async with PretendOllama("loop", faults="repeat@1") as daemon:
        heard = await ask(daemon.port, recording.path, recording.body.encode())
    ours, theirs = heard.text().split(), recorded(recording).text().split()
    assert len(set(ours)) == len(set(theirs)) == 1
    assert len(ours) == len(theirs)


async def test_a_model_that_cannot_be_loaded_says_so_as_recorded() -> None:
    recording = RECORDINGS["load-failure-generate"]
    async with PretendOllama("unload", faults="load_fail") as daemon:
        heard = await ask(daemon.port, recording.path, recording.body.encode())
    ours, theirs = (each.records()[0]["error"] for each in (heard, recorded(recording)))
    assert heard.status == recorded(recording).status == 500
    assert ours.split(": check")[0].split(": tensor")[0] == theirs.split(": check")[0]


async def test_a_model_that_runs_elsewhere_is_shown_as_recorded() -> None:
    shown = recorded(RECORDINGS["show-remote-cloud-on"]).records()[0]
    listed = recorded(RECORDINGS["tags-remote"])
    async with PretendOllama("remotey", faults="cloud") as daemon:
        heard = await ask(daemon.port, "/api/show", {"model": "remotey"})
        tags = await ask(daemon.port, "/api/tags", method="GET")
    remote = {"remote_model", "remote_host"}
    assert remote & set(heard.records()[0]) == remote & set(shown) == remote
    assert b"remote_host" in listed.wire
    assert remote <= set(tags.records()[0]["models"][0])
