"""Checks of arguments, with messages that give the name, the value and the valid values."""

import math
from numbers import Integral, Real
from typing import Any


def shown(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: object) -> str:
    """The message of another library's error: one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def check_integer(name: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raises a `ValueError` unless `value` is an integer, of Python or NumPy, in [least, most]."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        limit = "" if most == math.inf else f" to {most:,}"
        raise ValueError(f"`{name}` is {shown(value)}; valid is a whole number from {least}{limit}.")


def check_number(
    name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> None:
    """Raises a `ValueError` unless `value` is finite, greater than `above`, at least `least` and less than `below`."""
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (abs(number) < math.inf and above < number < below and least <= number):
        bounds = (("above", above), ("at least", least), ("below", below))
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if abs(bound) < math.inf)
        raise ValueError(f"`{name}` is {shown(value)}; valid is a finite number {limits}.".replace(" .", "."))


def check_seed(value: Any) -> None:
    """Raises a `ValueError` unless `value` is a valid seed, an integer in [0, 2**63)."""
    check_integer("seed", value, least=0, most=2**63 - 1)


def check_flag(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is `True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is {shown(value)}; valid are True and False.")


def check_choice(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless `value` is one of the words in `valid`."""
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"`{name}` is {shown(value)}; valid are {', '.join(map(repr, valid))}.")
