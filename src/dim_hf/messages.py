"""Short lists for messages."""

import re
from collections.abc import Iterable
from itertools import islice


LONGEST_VALUE = 60
# Ends of lines, what reorders text, and invalid Unicode.
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]+")


def listed(values: Iterable[object], most: int = 8) -> str:
    """
    The values as one short text: `"a, b, c and 17 more"`, or `"none"`.

    Each value is cut to 60 characters, and control characters are escaped, so that the text is one line.

    Args:
        values (`Iterable[object]`): The values, in order.
        most (`int`, *optional*, defaults to 8): Number of values that are named, at least 1.
    """
    remaining = iter(values)
    named = [one_line(value, LONGEST_VALUE) for value in islice(remaining, most)]
    more = sum(1 for _ in remaining)
    return (", ".join(named) or "none") + (f" and {more:,} more" if more else "")


def one_line(value: object, longest: int = 200) -> str:
    """A value as `str` of at most `longest` characters, with control characters and invalid Unicode escaped."""
    text = str(value)
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def markdown(value: object, longest: int = 500) -> str:
    """A value as one line of text in Markdown, in which no character starts a link, a tag, code or a cell."""
    line = CONTROL.sub(" ", str(value))
    line = line if len(line) <= longest else f"{line[: longest - 3]}..."
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)
