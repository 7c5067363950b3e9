"""A very small assembler for the classic BPF that seccomp runs.

A program is a list of instructions. Jumps go forwards only, and every rule below ends in a decision or
falls through to what follows it, so rules can be put one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

Instruction = tuple[int, int, int, int]  # code, steps if true, steps if false, constant
Program = list[Instruction]

NUMBER = 0  # offsets in struct seccomp_data
ARCHITECTURE = 4
ARGUMENTS = 16

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06


def load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def argument(index: int) -> Instruction:
    """The low half of an argument: all that the kernel looks at where the parameter is an int."""
    return load(ARGUMENTS + 8 * index)


def mask(bits: int) -> Instruction:
    return (_AND, 0, 0, bits)


def decide(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def if_equal(value: int, then: Program) -> Program:
    return [(_EQUAL, 0, _near(len(then)), value), *then]


def if_at_least(value: int, then: Program) -> Program:
    return [(_AT_LEAST, 0, _near(len(then)), value), *then]


def if_any_bit(bits: int, then: Program) -> Program:
    return [(_ANY_BIT, 0, _near(len(then)), bits), *then]


def unless_one_of(values: Sequence[int], then: Program) -> Program:
    """`then`, which must end in a decision, unless the loaded word is one of the values."""
    rest = len(then)
    jumps = [(_EQUAL, _near(len(values) - 1 - n + rest), 0, v) for n, v in enumerate(values)]
    return [*jumps, *then]


def _near(steps: int) -> int:
    if steps > 255:
        raise ValueError("a jump of classic BPF reaches 255 instructions")
    return steps


def assemble(program: Program) -> bytes:
    """The bytes that the kernel takes."""
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def run(program: Program, data: bytes) -> int:
    """What the program decides about `data` (a struct seccomp_data): the kernel's part, for tests."""
    at, word = 0, 0
    while True:
        code, true, false, k = program[at]
        at += 1
        if code == _LOAD:
            word = struct.unpack_from("=I", data, k)[0]
        elif code == _AND:
            word &= k
        elif code == _RETURN:
            return k
        else:
            holds = {_EQUAL: word == k, _AT_LEAST: word >= k, _ANY_BIT: bool(word & k)}[code]
            at += true if holds else false
