"""The command line: `onepass compare`, `surface`, `tune`, `bench` and `info`."""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from onepass import __version__, runtime
from onepass._extras import MissingExtraError, require
from onepass.lab import bench, compare, surface, tune
from onepass.lab._terminal import any_encoding

EXAMPLES = {
    "compare": (
        "--data wine --seeds 5",
        "--optimizer 'SGD(lr=0.01)' 'SGD(lr=0.1)' Adam",
        "--data mine.npz --tune",
    ),
    "surface": (
        "--surface ravine --optimizer SGD Momentum Adam",
        "--surface neuron --optimizer 'SGD(momentum=0.5)' 'SGD(momentum=0.9)'",
        "--surface rosenbrock --animate html",
    ),
    "tune": ("--data wine --trials 30", "--optimizer Adam AdamW --layers 1 3", "--resume"),
    "bench": ("--quick", "--threads 1", "--draw onepass-bench/bench.json --out pictures"),
}
"""What `--help` shows below the options."""
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 (failed) or 130 (interrupted).

    Arguments that make no sense end the process with code 2, as argparse does it.
    """
    try:
        with any_encoding():
            code = _run(argv)
            if sys.stdout is not None:
                sys.stdout.flush()  # now, while an error can still be reported
        return code
    except KeyboardInterrupt:
        print("onepass: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `onepass ... | head`: the reader has read enough
        _drop_output()
        return 1
    except (OSError, MissingExtraError) as error:  # a folder that cannot be written, a full disk
        print(f"onepass: {error}", file=sys.stderr)
        _drop_output()
        return 1
    except MemoryError as error:
        print(f"onepass: out of memory: {error}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow
        require("completion", argcomplete="argcomplete")
        from argcomplete import autocomplete

        autocomplete(parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # said by the command's own parser, whose usage helps
        getattr(args, "refuse", parser.error)(f"unrecognized arguments: {' '.join(unknown)}")
    given = sys.argv[1:] if argv is None else argv
    args.words = [each for each in given[1:] if each not in ("--resume", "--force")]
    if args.command is None:
        parser.print_help()
        return 0
    code: int = args.run(args)
    return code


def _drop_output() -> None:
    """Drop what the standard output still holds if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onepass",
        description="Fast, exact, in-place optimizers for NumPy arrays on the CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"onepass {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        examples = "".join(f"\n  onepass {name} {words}" for words in EXAMPLES.get(name, ()))
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=examples and f"examples:{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # argparse takes -1e-3 for an option: its own pattern has no exponents.
        command._negative_number_matcher = re.compile(r"-\.?\d")
        return command

    compare.add_command(add("compare", "train one network with every optimizer and report"))
    surface.add_command(
        add("surface", "draw the optimizers' paths down surfaces of two parameters")
    )
    tune.add_command(
        add("tune", "search for the best optimizer, its settings and the network's size")
    )
    bench.add_command(add("bench", "time steps and BatchNorm here, beside what else is installed"))
    summary = "version, compiler, processor, instruction sets and threads, and why these"
    add("info", summary).set_defaults(run=_info)
    return parser


def _info(_: argparse.Namespace) -> int:
    info = runtime.info()
    isas = [
        name if runs else f"{name} (not on this machine)" for name, runs in info["isas"].items()
    ]
    rows = {
        "onepass": info["version"],
        "python": info["python"],
        "numpy": info["numpy"],
        "compiler": info["compiler"],
        "flags": info["flags"],
        "cpu": info["cpu"],
        "isas built": ", ".join(isas),
        "isa in use": f"{info['isa']} ({info['isa_reason']})",
        "threads": f"{info['num_threads']} ({info['num_threads_reason']})",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    return 0
