"""The pickle in a checkpoint, checked before ``torch.load`` reads it.

``weights_only=True`` runs no code, but it hashes keys of any kind and makes a ``bytearray`` of any length.
"""

import pickletools
from typing import IO, NamedTuple

MAX_TUPLE = 10_000
"""Values of a tuple with the tuples in it written out: to hash one takes as many steps, however few bytes it has."""

MAX_KEY = 1 << 60
"""Whole numbers from 2^61 - 1 on can be chosen to have one hash, which makes a dictionary of them quadratic in time."""

_GETS, _PUTS = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
_HASHED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ")
_DICTS = ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS")
_CONTAINERS = ("OrderedDict", "Counter", "set", "frozenset")


class _Value(NamedTuple):
    steps: int  # that its hash takes
    is_key: bool  # a text or a small whole number
    is_dict: bool
    name: str  # of a class or function


_Stack = list[_Value | None]  # None is a mark


def check_pickle(content: bytes | IO[bytes]) -> None:
    """Follow a pickle without making its values.

    Args:
        content: the pickle; of a file, the next one, at whose end it is left.

    Raises:
        ValueError: it is damaged, holds tuples that share each other or keys that are neither texts nor small whole
            numbers, or makes a ``bytearray``.
    """
    stack: _Stack = []
    memo: dict[int, _Value | None] = {}
    word = ""
    try:
        for code, argument, _ in pickletools.genops(content):
            name = code.name
            if name in _GETS:
                stack.append(memo[int(argument or 0)])
            elif name in _PUTS:
                memo[int(argument or 0)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "DUP":
                stack.append(stack[-1])
            elif name == "MARK":
                stack.append(None)
            else:
                made = str(argument) if name == "GLOBAL" else word if name == "STACK_GLOBAL" else ""
                if made.endswith("bytearray"):
                    raise ValueError("it makes a bytearray")
                taken = _popped(code, stack)
                _check_keys(name, taken)
                steps = 1 + sum(value.steps for value in taken)
                if steps > MAX_TUPLE and name in _HASHED:
                    raise ValueError(f"it holds a tuple of more than {MAX_TUPLE:,} values")
                is_key = isinstance(argument, str) or (isinstance(argument, int) and abs(argument) < MAX_KEY)
                value = _Value(steps if name in _HASHED else 1, is_key and not made, name in _DICTS, made)
                stack += [value] * len(code.stack_after)
            word = argument if isinstance(argument, str) else word
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("its pickle is damaged") from error


def _check_keys(opcode: str, taken: list[_Value]) -> None:
    """Check what an opcode puts into a dictionary or a set; ``taken`` is as on the stack, the last first."""
    if opcode in ("SETITEM", "SETITEMS") and not all(key.is_key for key in taken[-2::-2]):
        raise ValueError("it holds a key that is neither a text nor a small whole number")
    makes = taken[-1].name.rpartition(" ")[2] if opcode == "REDUCE" else ""
    if opcode in ("ADDITEMS", "FROZENSET") or (makes in _CONTAINERS and taken[0].steps > 1):
        raise ValueError("it makes a set, or a dictionary of a list")
    if opcode == "BUILD" and not taken[0].is_dict:
        raise ValueError("it sets attributes that are no dictionary")


def _popped(code: pickletools.OpcodeInfo, stack: _Stack) -> list[_Value]:
    """Take what an opcode takes from the stack."""
    taken: list[_Value] = []
    wanted = list(code.stack_before)
    if pickletools.markobject in wanted:
        while (value := stack.pop()) is not None:
            taken.append(value)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    for _ in wanted:
        value = stack.pop()
        if value is None:
            raise LookupError("a mark in place of a value")
        taken.append(value)
    return taken
