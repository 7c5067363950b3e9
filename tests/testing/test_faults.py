"""Laws of the fault language: what is written is what is read, and nonsense is told what there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.errors import ConfigError
from ollama_adapter.testing import Fault, FaultKind, Faults
from ollama_adapter.testing.faults import CUTS, Armed

SECOND = 1_000_000_000
TIMED = (FaultKind.COLD_LOAD, FaultKind.PROMPT_EVAL, FaultKind.SLOW)
TIMEABLE = (FaultKind.STALL, FaultKind.DIE)


@st.composite
def a_fault(draw: st.DrawFn) -> Fault:
    kind = draw(st.sampled_from(FaultKind))
    length = st.integers(1, 86_400 * SECOND)
    taken = draw(length) if kind in TIMED else 0
    if kind in TIMEABLE:
        taken = draw(st.just(0) | length)
    return Fault(
        kind,
        at=draw(st.none() | st.integers(0, 9_999_999)) if kind in CUTS else None,
        for_ns=taken,
        times=draw(st.none() | st.integers(1, 9_999_999)),
        status=draw(st.integers(400, 599)) if kind is FaultKind.STATUS else 0,
    )


@given(st.lists(a_fault()))
def test_what_is_written_is_read(terms: list[Fault]) -> None:
    faults = Faults(tuple(terms))
    assert Faults.parse(str(faults)) == faults


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_0123456789@=*., -µ\n"))
def test_any_text_is_read_or_refused_with_the_names_there_are(text: str) -> None:
    try:
        faults = Faults.parse(text)
    except ConfigError as error:
        assert "stall" in error.hint
    else:
        assert Faults.parse(str(faults)) == faults


def test_the_language_by_example() -> None:
    text = "cold_load=8s, stall@40=1.5s*3, rst@12 ,eof@5*2,, no_done, 503, half_utf8, cloud, slow=250ms"
    assert Faults.parse(text) == Faults(
        (
            Fault(FaultKind.COLD_LOAD, for_ns=8 * SECOND),
            Fault(FaultKind.STALL, at=40, for_ns=3 * SECOND // 2, times=3),
            Fault(FaultKind.RST, at=12),
            Fault(FaultKind.EOF, at=5, times=2),
            Fault(FaultKind.NO_DONE),
            Fault(FaultKind.STATUS, status=503),
            Fault(FaultKind.HALF_UTF8),
            Fault(FaultKind.CLOUD),
            Fault(FaultKind.SLOW, for_ns=SECOND // 4),
        )
    )
    assert Faults.parse("") == Faults()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rts@12", "no fault rts"),
        ("rst@-1", "cannot be read"),
        ("rst @12", "cannot be read"),
        ("rst@12@13", "cannot be read"),
        ("status", "no fault status"),
        ("200", "not the status of an error"),
        ("999", "not the status of an error"),
        ("cold_load", "cold_load needs a time"),
        ("cold_load=fast", "time of the fault cold_load cannot be 'fast'"),
        ("cold_load=0s", "time of the fault cold_load"),
        ("slow=-1s", "time of the fault slow"),
        ("stall@4=48h", "time of the fault stall"),
        ("rst=2s", "rst takes no time"),
        ("cloud@3", "cloud has no place"),
        ("503@3", "has no place"),
        ("rst*0", "at least once"),
    ],
)
def test_nonsense_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Faults.parse(f"eof@5, {text}")
    assert says in str(refused.value)
    assert "cold_load" in refused.value.hint


def test_every_fault_is_named_in_the_hint() -> None:
    with pytest.raises(ConfigError) as refused:
        Faults.parse("nonsense")
    for kind in FaultKind:
        assert kind.value in refused.value.hint or kind is FaultKind.STATUS


@given(st.lists(a_fault(), min_size=1, unique=True), st.data())
def test_a_fault_strikes_as_often_as_it_says(terms: list[Fault], data: st.DataObject) -> None:
    armed = Armed(Faults(tuple(terms)))
    fault = data.draw(st.sampled_from(terms))
    for struck in range(5):
        in_force = fault in armed.of(fault.kind)
        assert in_force == (fault.times is None or struck < fault.times)
        if in_force:
            armed.strike(fault)
    assert len(armed.struck) == min(5, fault.times or 5)
    others = [each for each in terms if each != fault]
    assert [each for each in armed.of(*FaultKind) if each != fault] == others
