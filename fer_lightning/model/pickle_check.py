"""The pickle in a checkpoint, checked before ``torch.load`` reads it.

``weights_only=True`` runs no code, but it hashes the keys of dictionaries and makes a ``bytearray`` of any length.
"""

import pickletools

MAX_TUPLE = 10_000
"""Values of a tuple with the tuples in it written out: to hash one takes as many steps, however few bytes it has."""

_MARK = -1
_GETS, _PUTS = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
_HASHED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ")


def check_pickle(content: bytes) -> None:
    """Follow a pickle without making its values.

    Args:
        content: the pickle.

    Raises:
        ValueError: it is damaged, holds tuples that share each other, or makes a ``bytearray``.
    """
    stack: list[int] = []  # of each value, how many steps its hash takes
    memo: dict[int, int] = {}
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
                stack.append(_MARK)
            else:
                made = str(argument) if name == "GLOBAL" else word if name == "STACK_GLOBAL" else ""
                if made.endswith("bytearray"):
                    raise ValueError("it makes a bytearray")
                steps = 1 + sum(_popped(code, stack))
                if steps > MAX_TUPLE and name in _HASHED:
                    raise ValueError(f"it holds a tuple of more than {MAX_TUPLE:,} values")
                stack += [steps if name in _HASHED else 1] * len(code.stack_after)
            word = argument if isinstance(argument, str) else word
    except (LookupError, TypeError) as error:
        raise ValueError("its pickle is damaged") from error


def _popped(code: pickletools.OpcodeInfo, stack: list[int]) -> list[int]:
    """Take what an opcode takes from the stack."""
    taken: list[int] = []
    wanted = list(code.stack_before)
    if pickletools.markobject in wanted:
        while (value := stack.pop()) != _MARK:
            taken.append(value)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    return taken + [stack.pop() for _ in wanted]
