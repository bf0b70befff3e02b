"""A tiny vocabulary and a tiny masked LM, for the tests of augmentation."""

import functools
import json
import pathlib

import numpy as np
import tokenizers

from bitflax.data.text import Tokenizer
from bitflax.model import hf_weights, names
from bitflax.types import BertConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@functools.cache
def golden():
    """Return what TinyBERT's own code made, and its two arrays."""
    with np.load(GOLDEN / "augmentation.npz") as arrays:
        return json.loads((GOLDEN / "augmentation.json").read_text()), dict(arrays)


def tokenizer():
    """Return the tokenizer of the golden vectors' vocabulary."""
    vocab = {word: number for number, word in enumerate(golden()[0]["vocab"])}
    made = tokenizers.BertWordPieceTokenizer(vocab=vocab, lowercase=True)
    return Tokenizer(tokenizers.Tokenizer.from_str(made.to_str()))


CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)


def masked_state():
    """Return random weights under the names of BertForMaskedLM."""
    rng = np.random.default_rng(0)
    shapes = {e.name: e.shape for e in names.parameter_entries(CONFIG)}
    shapes = {n: s for n, s in shapes.items() if ".encoder" in n or ".embeddings" in n}
    width, head = CONFIG.hidden_size, "cls.predictions"
    shapes |= {
        f"{head}.transform.dense.weight": (width, width),
        f"{head}.transform.dense.bias": (width,),
        f"{head}.transform.LayerNorm.weight": (width,),
        f"{head}.transform.LayerNorm.bias": (width,),
        f"{head}.bias": (CONFIG.vocab_size,),
    }
    return {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}


def save_masked(folder, state=None, **fields):
    """Write a BertForMaskedLM's folder with the golden vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": CONFIG.vocab_size,
        "hidden_size": CONFIG.hidden_size,
        "num_hidden_layers": CONFIG.num_hidden_layers,
        "num_attention_heads": CONFIG.num_attention_heads,
        "intermediate_size": CONFIG.intermediate_size,
        "max_position_embeddings": CONFIG.max_position_embeddings,
    }
    (folder / "config.json").write_text(json.dumps(config | fields))
    (folder / "tokenizer.json").write_text(tokenizer().to_json())
    state = masked_state() if state is None else state
    hf_weights.write_state(folder / "model.safetensors", state)
    return folder


def save_vectors(path):
    """Write the golden words and vectors as GloVe's text."""
    data, arrays = golden()
    rows = zip(data["glove_words"], arrays["glove"], strict=True)
    lines = [" ".join([word, *(repr(float(x)) for x in row)]) for word, row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path
