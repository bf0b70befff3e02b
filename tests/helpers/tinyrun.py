"""A tiny teacher, tiny tasks and a recipe over them, for the tests of whole runs."""

import contextlib
import functools
import textwrap
from pathlib import Path

import numpy as np
import tokenizers

import bitflax as bf
from bitflax import training
from bitflax.data.text import Tokenizer
from bitflax.model import pretrained
from bitflax.runs import stages
from bitflax.training import ahead, device_choices, parallel
from tests.helpers import small

KINDS = {
    "animal": ["cat", "dog", "horse", "cow"],
    "food": ["bread", "soup", "rice", "cake"],
    "sky": ["rain", "snow", "wind", "cloud"],
}
FILL = ["the", "a", "my", "big", "small", "old", "two", "red"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *FILL, *(word for words in KINDS.values() for word in words)]

RECIPE = '''
"""A tiny run: a teacher, an FP32 stage and a 1-bit stage.

Command    bitflax run tiny.py --out runs/tiny
"""

import functools

import bitflax as bf


def recipe(*, task: str, teacher: str, ready: str | None = None,
           stages: int = 2, epochs: int = 4, keep: str = "last") -> bf.Recipe:
    hidden = bf.layer_pairs((1,), hidden=True)
    scores = bf.layer_pairs((1,))

    def soft(student, teacher, batch):
        real = student.logits.shape[-1] == 1
        loss = bf.logits_mse if real else bf.soft_cross_entropy
        return loss(student, teacher, batch)

    loss = bf.weighted(
        logits=(1.0, soft),
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=scores)),
    )
    optim = bf.Optim(lr=1e-2)
    taught = bf.Teacher(pretrained=teacher, epochs=24, optim=bf.Optim(lr=5e-3))
    if ready is not None:
        taught = bf.Teacher(folder=ready)
    fp32 = bf.Stage(name="fp32", init=bf.Init(layers=(1,)), loss=loss, optim=optim,
                    epochs=epochs, evals=2, keep=keep)
    onebit = bf.Stage(name="onebit", loss=loss, rules=bf.xtc_1bit(),
                      act=bf.symmetric(bits=8), optim=optim, epochs=epochs, evals=2,
                      keep=keep)
    return bf.Recipe(
        data=bf.Data(task=task, max_length=16, batch_size=16),
        teacher=taught,
        stages=(fp32, onebit)[:stages],
    )
'''


@functools.cache
def tokenizer() -> Tokenizer:
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", SPECIAL.index("[SEP]")), ("[CLS]", SPECIAL.index("[CLS]"))
    )
    return Tokenizer(made)


def write_teacher(folder: Path, layers: int = 2, **changes) -> Path:
    """Write a Hugging Face folder of fresh weights, 32 wide."""
    shape = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = bf.BertConfig(**(shape | changes))
    pretrained.save_pretrained(folder, config, small.params(config, 3), tokenizer())
    return folder


def texts(count: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """Return pairs (text, kind): three words, one of which tells the kind."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        kind = list(KINDS)[len(found) % len(KINDS)]
        words = [*rng.choice(FILL, 2), rng.choice(KINDS[kind])]
        found[" ".join(words)] = kind
    return list(found.items())


def write_tsv(path: Path, rows, header: str = "text\tlabel") -> Path:
    path.write_text("\n".join([header, *("\t".join(map(str, r)) for r in rows)]) + "\n")
    return path


def write_task(folder: Path) -> Path:
    return write_tsv(folder / "kinds.tsv", texts())


def write_recipe(folder: Path) -> Path:
    path = folder / "tiny.py"
    path.write_text(textwrap.dedent(RECIPE).lstrip())
    return path


@contextlib.contextmanager
def devices(count: int):
    """Let runs see so many devices: eight on two cores may wait for each other."""
    before = parallel.by_process
    parallel.by_process = lambda devices: before(devices)[:count]
    try:
        yield
    finally:
        parallel.by_process = before


def compile_ahead(monkeypatch) -> list[ahead.Ahead]:
    """Compile as on an accelerator; return what a training calls and had not begun."""
    missing, call, entered = [], ahead.Ahead.__call__, []
    train = training.train

    def noted(self, *args):
        if entered and ahead.shapes(args[-1]) not in self.begun:
            missing.append(self)
        return call(self, *args)

    def noting(*args):
        entered.append(True)
        found = train(*args)
        entered.clear()
        return found

    monkeypatch.setattr(training, "train", noting)
    monkeypatch.setattr(device_choices, "compile_threads", lambda: 2)
    monkeypatch.setattr(ahead.Ahead, "__call__", noted)
    return missing


def run(recipe: Path, out: Path, *settings: str, until=None, count: int = 1):
    """Run a recipe file as the command does; of two settings of a name the last one."""
    settings = tuple({s.partition("=")[0]: s for s in settings}.values())
    made = bf.load_recipe(recipe, settings)
    source = recipe.read_text()
    with devices(count):
        return stages.run(made, out, until=until, source=source, overrides=settings)
