"""Who answers in place of a model that cannot be had, and who never does."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.footprint import Facts
from ollama_adapter.core.substitution import Choice, choose_substitute
from ollama_adapter.events import Substitution

B = 10**9
TEXT = ("completion",)


def model(
    name: str,
    billions: float = 0,
    quantization: str = "Q4_K_M",
    family: str = "",
    capabilities: tuple[str, ...] = TEXT,
    **more: Any,
) -> Facts:
    count = int(billions * B)
    return Facts(
        name,
        family=family,
        parameters=count,
        quantization=quantization,
        capabilities=capabilities,
        **more,
    )


def names(choice: Choice) -> list[str]:
    return [each.facts.name for each in choice.ranked]


SHELF = (
    model("llama3.2:1b", 1.2, "Q8_0", "llama", ("completion", "tools")),
    model("llama2:7b", 6.7, family="llama"),
    model("qwen2.5:32b", 32.8, family="qwen2", capabilities=("completion", "tools")),
    model("qwen2.5-coder:3b", 3.1, family="qwen2"),
    model("llava:7b", 7.2, family="llama", capabilities=("completion", "vision")),
    model("nomic-embed-text:latest", 0.137, "F16", "nomic-bert", ("embedding",)),
    model("tinydoc:latest", 0.0003, "Q8_0", "llama", families=("llama", "demonstration")),
)


@pytest.mark.parametrize(
    ("asked", "best"),
    [
        ("llama3.2:3b", "llama3.2:1b"),  # the same model, though another is nearer in size
        ("llama3:8b", "llama2:7b"),
        ("llama3.3:70b", "qwen2.5:32b"),  # a small cousin is no large model
        (model("codellama:7b", 6.7, family="llama"), "llama2:7b"),
        ("qwen2.5-coder:7b", "qwen2.5-coder:3b"),
        ("starcoder2:3b", "qwen2.5-coder:3b"),
        ("unheard-of", "qwen2.5:32b"),  # nothing is known of it: the largest there is
    ],
)
def test_the_nearest_by_name_and_size(asked: Facts | str, best: str) -> None:
    assert names(choose_substitute(asked, SHELF))[0] == best


def test_reasons_are_in_words() -> None:
    choice = choose_substitute(model("llama3.2:latest", 3.2, family="llama"), SHELF)
    assert choice.ranked[0].reason == "same model, 1.2B instead of 3.2B parameters, Q8_0"
    assert choice.substitutions("it is not on this machine")[0] == Substitution(
        "llama3.2:latest",
        "llama3.2:1b",
        "it is not on this machine; instead same model, 1.2B instead of 3.2B parameters, Q8_0",
    )
    assert choice.hint.startswith("these would do: llama3.2:1b (same model, 1.2B instead of 3.2B")
    same_size = choose_substitute("phi4:14b", [model("qwen3:14b", 14)])
    assert same_size.ranked[0].reason == "another family, 14B parameters, Q4_K_M"
    unknown = choose_substitute("phi4:14b", [model("thing", quantization="")])
    assert unknown.ranked[0].reason == "another family, of unknown size"


@pytest.mark.parametrize(
    ("needs", "able"),
    [
        (("completion", "vision"), {"llava:7b"}),
        (("completion", "tools"), {"llama3.2:1b", "qwen2.5:32b"}),
        (("embedding",), {"nomic-embed-text:latest"}),
        (("tools",), {"llama3.2:1b", "qwen2.5:32b"}),
        (("completion", "tokens"), set()),
    ],
)
def test_a_substitute_can_do_what_is_needed(needs: tuple[str, ...], able: set[str]) -> None:
    assert set(names(choose_substitute("llama3:8b", SHELF, needs=needs))) == able


def test_what_completes_and_what_embeds_are_never_taken_for_each_other() -> None:
    embedder = SHELF[5]
    assert "nomic-embed-text:latest" not in names(choose_substitute("llama3", SHELF))
    assert names(choose_substitute(embedder, SHELF[:5], needs=())) == []
    assert names(choose_substitute(model("mxbai", capabilities=("embedding",)), SHELF, needs=()))
    old = [model("old:1b", 1, family="llama", capabilities=())]
    old += [model("older", 0.1, family="BERT", capabilities=())]
    assert names(choose_substitute("x", old)) == ["old:1b"]
    assert names(choose_substitute("x", old, needs=("embedding",))) == ["older"]


def test_the_demonstration_never_answers_for_another_model() -> None:
    copy = model("mine", 0.0003, families=("llama", "demonstration"))
    renamed = model("someone/tinydoc:v2", 0.0003)
    choice = choose_substitute("llama3", [SHELF[-1], copy, renamed])
    assert choice.ranked == () and choice.substitutions("it is missing") == ()
    assert choice.hint.startswith("no model here can take its place: mine (a demonstration that")
    assert "asked for by name" in choice.hint
    assert names(choose_substitute("tinydoc", SHELF[:1])) == ["llama3.2:1b"]  # the other way round


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (model("big:20b-cloud", 20), "it runs on another machine"),
        (model("stub", 20, remote=True), "it runs on another machine"),
        (model("../../x", 1), "its name cannot be used"),
        (model("twin", 3.2, digest="aa"), "the same file under another name"),
        (
            model("short", 1, "", "", ("completion", "vision"), context=2048),
            "its context is 2048 tokens, 8192 are asked for",
        ),
        (model("blind", 1), "it lacks vision"),
        (model("large", 9, capabilities=("completion", "vision")), "9 GB do not fit"),
    ],
)
def test_who_is_refused_and_why(candidate: Facts, why: str) -> None:
    asked = model("llama3.2:3b", 3.2, digest="aa")
    choice = choose_substitute(
        asked,
        [candidate, asked],
        needs=("completion", "vision"),
        num_ctx=8192,
        obstacle=lambda facts: "9 GB do not fit" if facts.parameters == 9 * B else "",
    )
    assert (choice.ranked, choice.refused) == ((), ((candidate.name, why),))
    assert choice.hint == f"no model here can take its place: {candidate.name} ({why})"


def test_where_nothing_else_is_there() -> None:
    assert choose_substitute("a", []).hint == "there is no other model here"
    assert choose_substitute("a", [model("A:latest", 1)]).hint == "there is no other model here"


def test_an_error_names_a_few() -> None:
    many = [model(f"m{number}:{number}b", number) for number in range(1, 9)]
    hint = choose_substitute("llama3:8b", many).hint
    assert hint.count("parameters") == 5 and hint.endswith(" and 3 more")


def test_between_equals_one_in_memory_is_preferred() -> None:
    pair = [model("a:7b", 7.0), model("b:7b", 7.2)]
    assert names(choose_substitute("c:7b", pair)) == ["a:7b", "b:7b"]
    assert names(choose_substitute("c:7b", pair, resident=["B:7B", "not/a/name/x"])) == [
        "b:7b",
        "a:7b",
    ]
    far = [model("a:7b", 7), model("b:1b", 1)]
    assert names(choose_substitute("c:7b", far, resident=["b:1b"])) == ["a:7b", "b:1b"]


def test_the_nearest_quantisation() -> None:
    shelf = [model(f"llama3:8b-{each}", 8, each) for each in ("Q2_K", "Q8_0", "F16", "Q5_K_M")]
    assert names(choose_substitute("llama3:8b-q4_K_M", shelf))[0] == "llama3:8b-Q5_K_M"
    assert names(choose_substitute("llama3:8b-fp16", shelf))[:2] == [
        "llama3:8b-F16",
        "llama3:8b-Q8_0",
    ]


def test_a_size_is_guessed_from_the_file_where_it_is_not_told() -> None:
    shelf = [
        model("a", weights_bytes=4_700_000_000, quantization=""),
        model("b", weights_bytes=900_000_000, quantization="Q8_0"),
        model("c"),
        model("d:13b"),
    ]
    assert names(choose_substitute("llama3:8b", shelf)) == ["a", "d:13b", "c", "b"]


kinds = st.sampled_from(
    [TEXT, ("embedding",), (), ("completion", "tools"), ("completion", "tools", "vision")]
)
facts = st.builds(
    Facts,
    name=st.from_regex(r"(llama|qwen|phi)[1-4]?(-coder)?:([1-9]b|[a-z]{3})(-cloud|-q[2-8]_0)?")
    .map(str.strip)
    .filter(bool),
    weights_bytes=st.integers(0, 1 << 46),
    parameters=st.integers(0, 1 << 46),
    quantization=st.sampled_from(["Q4_K_M", "Q8_0", "F16", "", "unknown"]),
    family=st.sampled_from(["llama", "qwen2", "bert", ""]),
    capabilities=kinds,
    remote=st.booleans(),
    context=st.integers(0, 9000),
)
shelves = st.lists(facts, max_size=8, unique_by=lambda each: each.name)
needed = st.sets(st.sampled_from(["completion", "tools", "vision", "embedding"]))


@given(st.sampled_from(["llama3", "qwen2:4b", "none:latest"]) | facts, shelves, needed, st.data())
def test_laws(asked: Facts | str, shelf: list[Facts], needs: set[str], data: st.DataObject) -> None:
    allowed = set(data.draw(st.lists(st.sampled_from([each.name for each in shelf] or [""]))))
    held = data.draw(st.lists(st.sampled_from([each.name for each in shelf] or [""])))

    def choose(models: list[Facts]) -> Choice:
        return choose_substitute(
            asked,
            models,
            needs=needs,
            num_ctx=4096,
            obstacle=lambda each: "" if each.name in allowed else "no room",
            resident=held,
        )

    choice = choose(shelf)
    chosen = {each.facts.name for each in choice.ranked}
    refused = {name for name, _ in choice.refused}
    asked_name = asked if isinstance(asked, str) else asked.name
    assert not chosen & refused and len(chosen | refused) == len(choice.ranked + choice.refused)
    assert chosen <= allowed and asked_name not in chosen
    for each in choice.ranked:
        assert not each.facts.remote and "cloud" not in each.facts.name
        assert needs <= set(each.facts.capabilities or ("completion", "embedding"))
        assert each.distance >= 0 and each.reason
    distances = [round(each.distance, 1) for each in choice.ranked]
    assert distances == sorted(distances)
    shuffled = list(shelf)
    random.Random(len(shelf)).shuffle(shuffled)
    assert choose(shuffled) == choice
