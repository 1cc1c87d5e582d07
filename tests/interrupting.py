"""Raises an exception at a chosen place of the package, so that a test can try them all."""

import dis
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType

import onepass

PACKAGE = str(Path(onepass.__file__).parent)


def at_each_place(
    attempt: Callable[[], Callable[[], object]],
    error: type[BaseException] = KeyboardInterrupt,
    *,
    event: str = "line",
    within: str | tuple[str, ...] = PACKAGE,
    at_most: int | None = None,
) -> Iterator[tuple[str, BaseException | None]]:
    """Run what `attempt` returns, again and again, and raise `error` at its next place each time.

    A place is a line or an instruction (`event` "line" or "opcode") of the files whose path begins
    with `within`; of one that a loop reaches again and again, its first `at_most` times. Yields
    where it was and what came out of the call, and ends with the first call that has no such place.
    """
    # From CPython 3.12 on, instructions are traced once a call before has asked for them.
    for target in itertools.count(-1 if event == "opcode" else 0):
        call = attempt()
        count: Iterator[int] = itertools.count()
        seen: Counter[tuple[CodeType, int]] = Counter()
        places: list[str] = []
        raised: list[BaseException] = []
        came_out: BaseException | None = None

        def is_new(frame, seen=seen):
            place = frame.f_code, frame.f_lineno
            seen[place] += 1
            return seen[place] <= at_most

        def trace_place(
            frame, what, _, target=target, count=count, places=places, raised=raised, is_new=is_new
        ):
            if what == event and (at_most is None or is_new(frame)) and next(count) == target:
                sys.settrace(None)
                places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                if not _leaves_a_block(frame):
                    raised.append(error())
                    raise raised[0]
            return trace_place

        def trace_call(frame, *_, trace_place=trace_place):
            frame.f_trace_opcodes = event == "opcode"
            return trace_place if frame.f_code.co_filename.startswith(within) else None

        before = sys.gettrace()
        sys.settrace(trace_call)
        try:
            call()
        except BaseException as something:
            came_out = something
        finally:
            sys.settrace(before)
        if came_out is not None and not raised:
            raise came_out
        if not places and target >= 0:
            return
        if raised:
            yield places[0], came_out


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
