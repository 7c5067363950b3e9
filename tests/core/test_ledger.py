"""What is believed to be in memory, next to what the daemon lists; and what loads have taught."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.durations import FOREVER_NS
from ollama_adapter.core.ledger import LAPSE_NS, Entry, Ledger, Lessons
from ollama_adapter.core.listing import Listed, is_for_ever, read_footprint, read_listing
from ollama_adapter.events import Change, Footprint, ResidencyChange

SECOND = 1_000_000_000
NOW = 100 * SECOND
MIB = 1 << 20


def listed(
    name: str, ram: int = 10, vram: int = 0, digest: str = "", num_ctx: int = 4096
) -> Listed:
    return Listed(
        f"{name}:latest", f"{name}:latest", digest, Footprint(ram * MIB, vram * MIB), num_ctx
    )


def entry(name: str, **more: Any) -> Entry:
    made = Entry(f"{name}:latest", f"{name}:latest", until_ns=NOW + 60 * SECOND, listed=True)
    made.footprint = Footprint(10 * MIB)
    for field, value in more.items():
        setattr(made, field, value)
    return made


def ledger(*entries: Entry) -> Ledger:
    made = Ledger()
    made.entries = {each.key: each for each in entries}
    return made


def told(changes: list[ResidencyChange]) -> list[tuple[str, Change]]:
    return [(each.model.partition(":")[0], each.change) for each in changes]


# What is known


def test_how_much_of_a_model_is_on_gpus_is_known_once_the_daemon_has_said_its_size() -> None:
    assert entry("a", footprint=Footprint(30 * MIB, 10 * MIB)).vram_share == 0.25
    assert entry("a").vram_share == 0.0
    assert entry("a", listed=False).vram_share is None
    assert entry("a", footprint=Footprint()).vram_share is None


def test_those_who_use_a_model_are_counted() -> None:
    book = ledger(entry("a", users=2), entry("b"), entry("c", users=1))
    assert book.users() == {"a:latest": 2, "c:latest": 1}
    assert book.at_work() == {"a:latest", "c:latest"}


def test_what_another_keeps_for_good_is_held_until_the_daemon_says_otherwise() -> None:
    for_good = Listed("a:latest", "a:latest", "", Footprint(10 * MIB), 4096, for_ever=True)
    book = ledger(held := entry("a"), ours := entry("b", keep_ns=FOREVER_NS))
    b_too = Listed("b:latest", "b:latest", "", Footprint(10 * MIB), 4096, for_ever=True)
    assert not book.residents(())[0].pinned
    book.reconcile([for_good, b_too], NOW)
    assert (held.held, ours.held) == (True, False)
    assert [each.pinned for each in book.residents(())] == [True, False]
    held.use(NOW, FOREVER_NS)  # as our own requests tell the daemon from then on
    book.reconcile([for_good], NOW)
    assert held.held
    held.use(NOW, SECOND)
    assert not held.held
    held.users = 1
    book.reconcile([for_good], NOW)  # while it answers, the daemon lists the time before
    assert not held.held
    held.users = 0
    book.reconcile([for_good], NOW)
    assert held.held
    book.reconcile([listed("a")], NOW)
    assert not held.held


# Reading


def test_a_listing_is_read() -> None:
    raw = {
        "name": "Llama3",
        "digest": "sha256:ab",
        "size": 300,
        "size_vram": 100,
        "context_length": 2048,
    }
    assert read_listing([raw]) == [
        Listed("Llama3:latest", "llama3:latest", "ab", Footprint(200, 100), 2048)
    ]


@pytest.mark.parametrize("wrong", [None, -1, 1.5, "7", True, 1 << 60, [1]])
def test_a_number_that_cannot_be_is_nought(wrong: Any) -> None:
    (found,) = read_listing(
        [
            {
                "model": "m",
                "size": wrong,
                "size_vram": wrong,
                "context_length": wrong,
                "digest": wrong,
            }
        ]
    )
    assert (found.footprint, found.num_ctx) == (Footprint(), 0)
    assert found.digest == ("7" if wrong == "7" else "")


@pytest.mark.parametrize("wrong", [None, -1, 1.5, "7", True, 1 << 47, [1]])
def test_a_share_of_the_gpu_that_cannot_be_makes_the_size_unknown_too(wrong: Any) -> None:
    book, raw = ledger(entry("a", footprint=Footprint(0, 10 * MIB))), {"name": "a", "size": 300}
    assert read_footprint(raw | {"size_vram": wrong}) == Footprint()
    assert read_footprint(raw) == Footprint(300)
    nonsense = [raw | {"size_vram": wrong}, {"name": "b", "size": wrong, "size_vram": 5}]
    assert told(book.reconcile(read_listing(nonsense), NOW)) == [("b", Change.LOADED_ELSEWHERE)]
    assert book.taken() == Footprint(0, 10 * MIB)  # as it was: nothing fell back, nothing grew


@pytest.mark.parametrize(
    ("expires_at", "good"),
    [
        ("2319-03-09T14:58:28.79375+01:00", True),
        ("2262-04-11T23:47:16Z", True),
        ("2026-11-28T08:00:00.5Z", False),
        ("0001-01-01T00:00:00Z", False),
        ("", False),
        ("never", False),
        (None, False),
        (2319, False),
    ],
)
def test_a_year_that_nobody_lives_to_see_is_for_good(expires_at: Any, good: bool) -> None:
    assert is_for_ever(expires_at) is good
    assert read_listing([{"name": "m", "expires_at": expires_at}])[0].for_ever is good


def test_more_on_the_gpu_than_there_is_counts_once() -> None:
    assert read_listing([{"name": "m", "size": 5, "size_vram": 9}])[0].footprint == Footprint(0, 5)


@pytest.mark.parametrize("name", [None, 7, "", "two words", "a/b/c/d"])
def test_what_is_no_model_is_left_out(name: Any) -> None:
    assert read_listing([{"name": name, "model": name}]) == []


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
FIELDS = st.sampled_from(["name", "size", "size_vram", "digest"])


@given(st.lists(st.dictionaries(FIELDS, JSON | st.lists(JSON, max_size=2)), max_size=3))
def test_no_listing_breaks_it(entries: list[dict[str, Any]]) -> None:
    for each in read_listing(entries):
        assert each.footprint.ram >= 0 <= each.footprint.vram


# Warm


@pytest.mark.parametrize(
    ("state", "warm"),
    [
        ({}, True),
        ({"until_ns": NOW}, False),
        ({"until_ns": NOW + SECOND // 2}, True),
        ({"until_ns": 0, "users": 1}, True),
        ({"loading": True}, False),
        ({"doubtful": True}, False),
        ({"missing": True, "users": 1}, False),
    ],
)
def test_warm(state: dict[str, Any], warm: bool) -> None:
    assert entry("a", **state).is_warm(NOW) is warm


def test_use_begins_the_keep_alive() -> None:
    used = entry("a")
    used.use(NOW, 5 * SECOND)
    assert (used.last_used_ns, used.until_ns) == (NOW, NOW + 5 * SECOND)
    used.use(NOW, FOREVER_NS)
    assert used.until_ns == FOREVER_NS


# Believing the daemon


def test_nothing_has_changed() -> None:
    book = ledger(entry("a"))
    assert book.reconcile([listed("a")], NOW) == []
    assert book.taken() == Footprint(10 * MIB)
    assert repr(book) == "<Ledger of 1 models>"


def test_the_number_that_was_read_counts() -> None:
    fresh = entry("a", listed=False, footprint=Footprint(99 * MIB))
    book = ledger(fresh)
    assert book.reconcile([listed("a", 3, 4, "ab", 512)], NOW) == []
    assert (fresh.footprint, fresh.num_ctx, fresh.digest) == (
        Footprint(3 * MIB, 4 * MIB),
        512,
        "ab",
    )
    assert fresh.listed


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        ((0, 10), []),
        ((5, 5), [Change.FELL_BACK_TO_CPU]),
        ((0, 12), [Change.GREW]),
        ((12, 0), [Change.FELL_BACK_TO_CPU, Change.GREW]),
        ((0, 9), [Change.FELL_BACK_TO_CPU]),
    ],
)
def test_what_has_become_of_a_model_on_the_gpu(
    after: tuple[int, int], changes: list[Change]
) -> None:
    book = ledger(entry("a", footprint=Footprint(0, 10 * MIB)))
    found = book.reconcile([listed("a", *after)], NOW)
    assert [each.change for each in found] == changes
    for each in found:
        assert each.footprint == Footprint(after[0] * MIB, after[1] * MIB)
        assert "MiB" in each.reason


def test_a_load_that_goes_on_is_not_judged() -> None:
    book = ledger(entry("a", loading=True))
    assert book.reconcile([], NOW) == []
    assert book.reconcile([listed("a", 90)], NOW) == []
    assert book.entries["a:latest"].footprint == Footprint(90 * MIB)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({}, Change.UNLOADED_ELSEWHERE),
        ({"until_ns": NOW}, Change.EXPIRED),
        ({"until_ns": NOW, "foreign": True}, Change.UNLOADED_ELSEWHERE),
        ({"listed": False}, None),
    ],
)
def test_a_model_that_is_not_listed_any_more_is_gone(
    state: dict[str, Any], change: Change | None
) -> None:
    book = ledger(entry("a", **state))
    changes = book.reconcile([], NOW)
    assert told(changes) == ([("a", change)] if change else [])
    assert all(each.footprint == Footprint() for each in changes)
    assert book.entries == {}


def test_a_model_of_ours_that_is_left_out_for_a_moment_stays_ours() -> None:
    ours = entry("a", digest="ab", num_ctx=4096, reloading={"num_ctx": 4096}, load_s=2.0)
    book = ledger(ours)
    assert told(book.reconcile([], NOW)) == [("a", Change.UNLOADED_ELSEWHERE)]
    assert book.entries == {}
    back = book.reconcile([listed("a", 4, 6, digest="ab")], NOW + LAPSE_NS)
    assert told(back) == [("a", Change.LOADED)] and "again" in back[0].reason
    assert book.entries == {"a:latest": ours} and not ours.foreign
    assert (ours.footprint, ours.load_s) == (Footprint(4 * MIB, 6 * MIB), 2.0)
    assert not ours.is_warm(NOW), "somebody may have told the daemon another keep-alive"
    ours.doubtful = False
    assert ours.is_warm(NOW)


@pytest.mark.parametrize(
    ("state", "after_ns", "found"),
    [
        ({}, LAPSE_NS + 1, {}),
        ({}, 1, {"digest": "other"}),
        ({}, 1, {"num_ctx": 512}),
        ({}, 1, {"ram": 11}),
        ({"foreign": True}, 1, {}),
        ({"until_ns": NOW}, 1, {}),
    ],
)
def test_what_comes_back_late_or_as_another_is_somebody_elses(
    state: dict[str, Any], after_ns: int, found: dict[str, Any]
) -> None:
    book = ledger(entry("a", **{"digest": "ab", "num_ctx": 4096} | state))
    book.reconcile([], NOW)
    again = listed("a", **{"digest": "ab"} | found)
    assert told(book.reconcile([again], NOW + after_ns)) == [("a", Change.LOADED_ELSEWHERE)]
    assert book.entries["a:latest"].foreign


def test_nothing_comes_back_from_another_daemon() -> None:
    ours, gone = entry("a", num_ctx=4096), entry("b")
    book = ledger(ours, gone)
    book.reconcile([listed("b")], NOW)
    assert book.clear() == [gone] and book.entries == {}
    assert told(book.reconcile([listed("a")], NOW)) == [("a", Change.LOADED_ELSEWHERE)]


def test_a_model_in_use_keeps_its_place_and_is_told_of_once() -> None:
    book = ledger(entry("a", users=1, until_ns=NOW))
    assert told(book.reconcile([], NOW)) == [("a", Change.UNLOADED_ELSEWHERE)]
    assert book.reconcile([], NOW) == []
    assert book.entries["a:latest"].missing
    assert book.taken() == Footprint(10 * MIB)
    assert book.reconcile([listed("a", 99)], NOW) == [], "its own request has brought it back"
    assert not book.entries["a:latest"].missing


def test_what_somebody_else_has_loaded() -> None:
    book = Ledger()
    assert told(book.reconcile([listed("a", num_ctx=2048), listed("b", num_ctx=0)], NOW)) == [
        ("a", Change.LOADED_ELSEWHERE),
        ("b", Change.LOADED_ELSEWHERE),
    ]
    first, second = book.entries.values()
    assert (first.foreign, first.reloading, second.reloading) == (True, {"num_ctx": 2048}, {})
    assert not first.is_warm(NOW)


def test_one_runner_serves_all_names_of_a_model() -> None:
    book = ledger(entry("mine", digest="ab"), entry("other", digest="cd"))
    assert book.reconcile([listed("copy", 20, digest="ab"), listed("other", digest="cd")], NOW) == [
        ResidencyChange(
            "mine:latest",
            Change.GREW,
            Footprint(20 * MIB),
            "it takes 20 MiB, and took 10 MiB before",
            NOW,
        )
    ]
    assert set(book.entries) == {"mine:latest", "other:latest"}


def test_a_plan_sees_them() -> None:
    book = ledger(
        entry("busy", users=1),
        entry("pinned"),
        entry("foreign", foreign=True),
        entry("stuck", stuck=True),
        entry("loading", loading=True, load_s=2.0),
    )
    seen = {each.name.partition(":")[0]: each for each in book.residents(["pinned:latest"])}
    assert [name for name, each in seen.items() if each.busy] == ["busy", "loading"]
    assert [name for name, each in seen.items() if each.pinned] == ["pinned"]
    assert [name for name, each in seen.items() if each.foreign] == ["foreign", "stuck"]
    assert seen["loading"].load_s == 2.0
    assert book.at_work() == {"busy:latest"}
    assert book.find("busy:latest") is book.entries["busy:latest"]
    assert book.find("nobody:latest") is None


ENTRIES = st.lists(
    st.builds(
        entry,
        st.sampled_from("abcd"),
        users=st.integers(0, 1),
        foreign=st.booleans(),
        listed=st.booleans(),
        loading=st.booleans(),
        missing=st.booleans(),
        digest=st.sampled_from(["", "x", "y"]),
    ),
    unique_by=lambda each: each.key,
)
LISTINGS = st.lists(
    st.builds(
        listed,
        st.sampled_from("abcdef"),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from(["", "x", "z"]),
    ),
    unique_by=lambda each: each.key,
)


@given(ENTRIES, LISTINGS)
def test_what_is_listed_is_believed_and_asking_again_tells_nothing_new(
    entries: list[Entry], listing: list[Listed]
) -> None:
    book = ledger(*entries)
    used = {each.key for each in entries if each.users or each.loading}
    book.reconcile(listing, NOW)
    assert used <= set(book.entries)
    by_key = {each.key: each for each in listing}
    for each in book.entries.values():
        if each.key in by_key:
            said = by_key[each.key].footprint
            assert each.footprint == said or not said.total
            assert each.listed
    assert book.reconcile(listing, NOW) == []


def test_a_listing_without_a_size_does_not_make_a_model_weightless() -> None:
    book = ledger()
    book.reconcile(read_listing([{"name": "m", "size": 5}]), NOW)
    book.reconcile(read_listing([{"name": "m"}]), NOW)
    assert book.taken() == Footprint(5)


def test_a_model_stays_for_as_long_as_the_daemon_was_told_the_last_time() -> None:
    entry = Entry("m:latest", "m:latest")
    entry.use(NOW, 5)
    entry.keep_ns = 7
    entry.use(NOW)
    assert entry.until_ns == NOW + 7


# Lessons


def test_a_load_teaches_its_size_its_time_and_the_pace_of_others() -> None:
    lessons = Lessons()
    assert lessons.expected_s("a", {}, 1000) is None
    lessons.learn("a", {"num_ctx": 1}, 1000, 2.0)
    assert lessons.size("a", {"num_ctx": 1}) == 1000
    assert lessons.size("a", {}) == 0
    assert lessons.expected_s("a", {"num_ctx": 1}, 5000) == 2.0
    assert lessons.expected_s("b", {}, 1000) == 2.0
    lessons.learn("b", {}, 3000, 2.0)
    assert lessons.expected_s("c", {}, 1000) == 1.0
    lessons.learn("d", {}, 0, 0.0)
    assert lessons.expected_s("c", {}, 1000) == 1.0
    assert repr(lessons) == "<Lessons of 3 loads>"


def test_lessons_are_bounded() -> None:
    lessons = Lessons()
    for number in range(300):
        lessons.learn(f"{number}", {}, 10, 1.0)
    assert lessons.size("0", {}) == 0
    assert lessons.size("299", {}) == 10
    assert repr(lessons) == "<Lessons of 256 loads>"
