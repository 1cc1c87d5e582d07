"""Times updates of spaCy's pipelines with Thinc's Adam and with ours, and the part that is Adam's.

python bench/spacy_update.py               a minute; needs `pip install '.[thinc]' spacy`

Settings are those that `spacy init config` writes; texts are random words. The two optimizers take
turns, an update each, on pipelines of their own that began alike. With one thread the clock is that
of the thread, which stands still while other programs have the core.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import spacy
import thinc.api
from spacy.training import Example

import onepass as op
import onepass.thinc

DOCUMENTS, WORDS, VOCABULARY = 32, 40, 5000
WARM_UP = 3
clock = time.perf_counter
SETTINGS = {"learn_rate": 0.001, "L2": 0.01, "grad_clip": 1.0}
BAG = {
    "@architectures": "spacy.TextCatBOW.v3",
    "exclusive_classes": True,
    "ngram_size": 1,
    "no_output_layer": False,
    "length": 262144,
}
PIPES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "textcat, bag of words": ("textcat", {"model": BAG}, False),
    "the same, with averages": ("textcat", {"model": BAG}, True),
    "textcat, spaCy's ensemble": ("textcat", {}, False),
    "ner": ("ner", {}, False),
}


class Timed:
    """An optimizer that adds up the seconds of its calls."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        start = clock()
        result = self.optimizer(*arguments, **keywords)
        self.seconds += clock() - start
        return result


class Contender:
    """A pipeline and its optimizer."""

    def __init__(self, make: Callable[..., Any], pipe: str, averages: bool) -> None:
        name, config, _ = PIPES[pipe]
        thinc.api.fix_random_seed(0)
        self.nlp = spacy.blank("en")
        self.nlp.add_pipe(name, config=config)
        self.examples = list(examples(self.nlp, name))
        self.optimizer = Timed(make(**SETTINGS, use_averages=averages))
        self.nlp.initialize(lambda: self.examples, sgd=self.optimizer.optimizer)

    def update(self) -> tuple[float, float]:
        """Return the seconds of an update, and those of its optimizer."""
        self.optimizer.seconds = 0.0
        start = clock()
        self.nlp.update(self.examples, sgd=self.optimizer)
        return clock() - start, self.optimizer.seconds

    def size(self) -> int:
        """Return how many parameters there are."""
        ((_, pipe),) = self.nlp.pipeline
        nodes = [(node, name) for node in pipe.model.walk() for name in node.param_names]
        return sum(node.get_param(name).size for node, name in nodes if node.has_param(name))


def examples(nlp: Any, pipe: str) -> Any:
    """Yield documents of random words, as `pipe` learns from them."""
    drawn = random.Random(0)
    for _ in range(DOCUMENTS):
        doc = nlp.make_doc(" ".join(f"w{drawn.randrange(VOCABULARY)}" for _ in range(WORDS)))
        label = drawn.choice("ABC")
        if pipe == "textcat":
            yield Example.from_dict(doc, {"cats": {name: float(name == label) for name in "ABC"}})
        else:
            span = doc[(at := drawn.randrange(WORDS - 2)) : at + 2]
            yield Example.from_dict(doc, {"entities": [(span.start_char, span.end_char, label)]})


def row(pipe: str, seconds: float) -> str:
    averages = PIPES[pipe][2]
    sides = [Contender(make, pipe, averages) for make in (thinc.api.Adam, onepass.thinc.Adam)]
    for side in sides * WARM_UP:
        side.update()
    rounds = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        rounds.append([side.update() for side in sides])
    updates, steps = [[[times[i] for times in one] for one in rounds] for i in range(2)]

    def compared(times: list[list[float]]) -> str:
        theirs, ours = (median(side) * 1e3 for side in zip(*times, strict=True))
        ratio = median(one[0] / one[1] for one in times)
        return f"{theirs:.1f} -> {ours:.1f} ({ratio:.2f}x)"

    shares = [
        median(step[i] / update[i] for update, step in zip(updates, steps, strict=True))
        for i in range(2)
    ]
    share = " -> ".join(f"{one:.0%}" for one in shares)
    size = f"{sides[0].size() / 1e6:.2f}M"
    return f"| {pipe} | {size} | {compared(updates)} | {compared(steps)} | {share} |"


def main() -> None:
    global clock  # noqa: PLW0603
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=12.0, help="for each line")
    parser.add_argument("--threads", type=int, default=op.get_num_threads(), help="of onepass")
    options = parser.parse_args()
    op.set_num_threads(options.threads)
    if options.threads == 1:
        clock = time.thread_time
    versions = f"spaCy {spacy.__version__}, Thinc {thinc.__version__}"
    print(f"{versions}, {DOCUMENTS} documents of {WORDS} words; threads: {options.threads}")
    print(f"load at the start: {os.getloadavg()[0]:.1f}\n")
    print("| pipeline | parameters | update, ms | optimizer, ms | its share |")
    print("| --- | --: | --- | --- | --- |")
    for pipe in PIPES:
        print(row(pipe, options.seconds), flush=True)


if __name__ == "__main__":
    main()
