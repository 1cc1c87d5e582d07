"""spaCy trains with onepass: one line of a config is another one, and the scores are the same."""

import random

import numpy as np
import pytest
import spacy
from spacy.cli.init_config import init_config
from spacy.cli.train import train
from spacy.tokens import DocBin
from spacy.training import Example
from thinc.api import Adam, Config, fix_random_seed
from thinc_steps import forbid_thincs_step

import onepass.thinc as ours

WORDS = {
    "sport": ("match", "goal", "team", "player", "coach", "season", "league", "score"),
    "food": ("bread", "soup", "salt", "oven", "butter", "recipe", "spoon", "taste"),
    "music": ("song", "chord", "band", "drum", "melody", "tune", "concert", "voice"),
}
FILLERS = ("the", "a", "some", "of", "and", "with", "for", "then", "today", "again", "very")
LABELS = tuple(WORDS)


def texts(count, seed):
    """Sentences of three topics, of which each names its own twice, and another one once."""
    drawn = random.Random(seed)
    for _ in range(count):
        label, other = drawn.sample(LABELS, 2)
        words = [*drawn.choices(WORDS[label], k=2), *drawn.choices(FILLERS, k=6)]
        words.append(drawn.choice(WORDS[other]))
        drawn.shuffle(words)
        yield " ".join(words), {name: float(name == label) for name in LABELS}


CONFIG = init_config(lang="en", pipeline=["textcat"], optimize="efficiency").to_str()
"""What `spacy init config` writes."""

THEIR_LINE = '@optimizers = "Adam.v1"'


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Where the texts to train and to score with lie, as overrides of the config."""
    folder, vocabulary = tmp_path_factory.mktemp("corpus"), spacy.blank("en")
    paths = {}
    for seed, (name, count) in enumerate({"train": 200, "dev": 60}.items()):
        docs = DocBin()
        for text, cats in texts(count, seed):
            doc = vocabulary(text)
            doc.cats = cats
            docs.add(doc)
        docs.to_disk(folder / f"{name}.spacy")
        paths[f"paths.{name}"] = str(folder / f"{name}.spacy")
    return paths


QUICK = {
    "components.textcat.model.length": 4096,
    "training.max_steps": 60,
    "training.eval_frequency": 20,
    "training.optimizer.learn_rate": {
        "@schedules": "warmup_linear.v1",
        "initial_rate": 0.02,
        "warmup_steps": 10,
        "total_steps": 100,
    },
    "training.optimizer.use_averages": True,
}
"""What is given on the command line, for both."""


def trained(folder, overrides, config=CONFIG):
    """Return what `spacy train` makes of a config."""
    folder.mkdir()
    (folder / "config.cfg").write_text(config)
    train(folder / "config.cfg", folder, overrides=overrides)
    return spacy.load(folder / "model-last")


def performance(nlp):
    return {k: v for k, v in nlp.meta["performance"].items() if isinstance(v, float)}


@pytest.fixture(scope="module")
def theirs(corpus, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("theirs") / "run", {**corpus, **QUICK})


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_spacy_train_with_another_line_scores_as_before(
    name, corpus, theirs, tmp_path, monkeypatch
):
    assert performance(theirs)["cats_score"] > 0.9
    forbid_thincs_step(monkeypatch)  # so that all steps are ours
    assert CONFIG.count(THEIR_LINE) == 1
    config = CONFIG.replace(THEIR_LINE, f'@optimizers = "onepass.{name}.v1"')
    nlp = trained(tmp_path / "run", {**corpus, **QUICK}, config)
    assert performance(nlp) == pytest.approx(performance(theirs), rel=1e-3)
    for (_, mine), (_, other) in zip(parameters(nlp), parameters(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_spacy_train_with_a_rule_that_thinc_lacks(corpus, tmp_path):
    before, section, after = CONFIG.partition("[training.optimizer]\n")
    after = after.partition("\n[training.batcher]")[2]
    lion = '@optimizers = "onepass.Lion.v1"\nlearn_rate = 0.01\nbetas = [0.9, 0.98]\n'
    config = f"{before}{section}{lion}\n[training.batcher]{after}"
    quick = {name: value for name, value in QUICK.items() if "optimizer" not in name}
    nlp = trained(tmp_path / "run", {**corpus, **quick}, config)
    assert performance(nlp)["cats_score"] > 0.9
    filled = nlp.config["training"]["optimizer"]  # as spaCy writes it, with all defaults
    assert filled["betas"] == [0.9, 0.98]
    assert filled["grad_clip"] == 1.0


def parameters(nlp):
    """Yield the parameters of the pipeline."""
    for node in nlp.get_pipe("textcat").model.walk():
        for name in node.param_names:
            yield name, node.get_param(name)


def losses_and_score(optimizer, model):
    """Return what `nlp.update` reports, and the score of the averages."""
    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("textcat", config=model)
    pairs = [(nlp.make_doc(text), {"cats": cats}) for text, cats in texts(64, 0)]
    examples = [Example.from_dict(*pair) for pair in pairs]
    nlp.initialize(lambda: examples, sgd=optimizer)
    losses = [
        nlp.update(examples[start : start + 32], sgd=optimizer, drop=0.0)["textcat"]
        for _ in range(6)
        for start in (0, 32)
    ]
    with nlp.use_params(optimizer.averages):
        return np.array(losses), nlp.evaluate(examples)["cats_score"]


BAG = Config().from_str(CONFIG)["components"]["textcat"]["model"]


@pytest.mark.parametrize("model", [{"model": BAG}, {}], ids=["bag of words", "ensemble"])
def test_a_loop_of_ones_own_trains_as_with_thincs(model):
    """The default, an ensemble, has embeddings and layers besides."""
    want, their_score = losses_and_score(Adam(0.001), model)
    near, _ = losses_and_score(Adam(0.001 * (1 + 1e-6)), model)
    got, our_score = losses_and_score(ours.Adam(0.001), model)
    assert want[-1] < want[0]
    assert our_score == their_score
    nearest = np.finfo(np.float32).eps * want
    assert (abs(got - want) <= np.maximum(abs(near - want).max(), nearest)).all()
