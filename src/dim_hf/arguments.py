"""Checks of arguments: a wrong one is refused in one message, with its name, its value and what is valid."""

import math
from numbers import Integral, Real
from typing import Any


def shown(value: Any) -> str:
    """A value as a message has it: on one line, of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: object) -> str:
    """What an error of another library says, on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def check_integer(name: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raises a `ValueError` unless a value is an integer, of Python or NumPy, from `least` to `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        limit = "" if most == math.inf else f" to {most:,}"
        raise ValueError(f"`{name}` is {shown(value)}; valid is a whole number from {least}{limit}.")


def check_number(
    name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> None:
    """Raises a `ValueError` unless a value is a finite number above `above`, at least `least` and below `below`."""
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (abs(number) < math.inf and above < number < below and least <= number):
        bounds = (("above", above), ("at least", least), ("below", below))
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if abs(bound) < math.inf)
        raise ValueError(f"`{name}` is {shown(value)}; valid is a finite number {limits}.".replace(" .", "."))


def check_seed(value: Any) -> None:
    """Raises a `ValueError` unless a value can seed generators of random numbers, which take 63 bits."""
    check_integer("seed", value, least=0, most=2**63 - 1)


def check_flag(name: str, value: Any) -> None:
    """Raises a `ValueError` unless a value is `True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is {shown(value)}; valid are True and False.")


def check_choice(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless a value is one of some words."""
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"`{name}` is {shown(value)}; valid are {', '.join(map(repr, valid))}.")
