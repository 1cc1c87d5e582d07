"""Output that cannot show every character: a terminal, a pipe or a file that is not UTF-8."""

import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPELT = {"±": "+-", "²": "2", "…": "..."}
"""The characters of our own texts that are not ASCII, spelt in ASCII."""

_HANDLER = "onepass.spelt"


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    ascii_text = (
        SPELT.get(each) or each.encode("ascii", "backslashreplace").decode() for each in unknown
    )
    return "".join(ascii_text), error.end


codecs.register_error(_HANDLER, _spell)


@contextmanager
def any_encoding() -> Iterator[None]:
    """Let both standard streams spell out, in the block, what they cannot encode."""
    strict = [
        stream
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict"
    ]
    for stream in strict:
        stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream in strict:
            stream.reconfigure(errors="strict")


def as_shown(text: str) -> str:
    """Return what the standard output makes of a text, so that it can be aligned."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    errors = getattr(sys.stdout, "errors", None) or "strict"
    return text.encode(encoding, errors).decode(encoding, errors)
