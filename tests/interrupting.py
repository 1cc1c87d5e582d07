"""Raises an exception at a chosen Python line of the package, so that a test can try them all."""

import dis
import itertools
import sys
from collections.abc import Callable, Iterator
from types import FrameType


def at_each_line(
    attempt: Callable[[], Callable[[], object]], error: type[BaseException]
) -> Iterator[tuple[str, object]]:
    """Run what `attempt` returns, again and again, and raise `error` at its next line each time.

    Yields where it was raised and what the call returned, None where the error came out. Ends with
    the first run that has no such line.
    """
    for target in itertools.count():
        call = attempt()
        lines: Iterator[int] = itertools.count()
        places: list[str] = []

        def trace_line(frame, event, _, target=target, lines=lines, places=places):
            if event == "line" and next(lines) == target:
                sys.settrace(None)
                places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                if not _leaves_a_block(frame):
                    raise error
            return trace_line

        def trace_call(frame, *_, trace_line=trace_line):
            return trace_line if "/onepass/" in frame.f_code.co_filename else None

        before = sys.gettrace()
        result = None
        sys.settrace(trace_call)
        try:
            result = call()
        except error:
            pass
        finally:
            sys.settrace(before)
        if not places:
            return
        yield places[0], result


def _leaves_a_block(frame: FrameType) -> bool:
    """Return whether a `with` statement is about to call the block's end.

    No signal strikes there: CPython looks for them after a call and at a jump back, so the last
    chance is inside the block, and the next one after its end. A tracer alone could raise between.
    """
    code, at = frame.f_code, frame.f_lasti
    if code.co_code[at] == dis.opmap["SWAP"]:  # what the block returns
        at += 2
    ops, arguments = code.co_code[at : at + 6 : 2], code.co_code[at + 1 : at + 6 : 2]
    loads = [op == dis.opmap["LOAD_CONST"] for op in ops]
    return loads == [True] * 3 and all(code.co_consts[i] is None for i in arguments)
