"""A packed file of 12 kB that has everything in it, for tests of the strict reader."""

import functools
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np

import bitflax as bf
from bitflax.model import apply
from bitflax.model.leaves import Split
from bitflax.packed import file, packing
from bitflax.quantization.learned_activations import clipped, lsq
from tests.helpers import small

CONFIG = small.config(1, hidden_size=12, num_attention_heads=2, vocab_size=40)
ACT = (
    (r".*/attention/probs", bf.asymmetric(8)),
    (r".*/ffn/out/input", lsq(4, signed=False)),
    (
        r"encoder/layer_\d+/(attention/(query|key)|ffn/in)/input",
        clipped(bf.symmetric()),
    ),
    (r"encoder/.*/input", bf.symmetric(bits=8)),
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(97, 123)), "öl", "##s"]
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            **{"id": i, "content": word, "special": True, "single_word": False},
            **{"lstrip": False, "rstrip": False, "normalized": False},
        }
        for i, word in enumerate(WORDS[:4])
    ],
    "normalizer": {
        **{"type": "BertNormalizer", "clean_text": True, "strip_accents": None},
        **{"handle_chinese_chars": True, "lowercase": True},
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {
            word: {"id": word, "ids": [i], "tokens": [word]}
            for i, word in enumerate(WORDS[:4])
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        **{"type": "WordPiece", "unk_token": "[UNK]", "max_input_chars_per_word": 100},
        "continuing_subword_prefix": "##",
        "vocab": {word: i for i, word in enumerate(WORDS)},
    },
}


@functools.cache
def tiny() -> bytes:
    """A file of 12 kB: 1, 1.6 and 8 bits, halves, padding, learned activations."""
    rules = (
        (r"encoder/.*/in/kernel", bf.ternarize),
        (r"encoder/.*/kernel", bf.binarize),
        (r"embeddings/word/embedding", functools.partial(bf.binarize, axis=-1)),
    )
    params = _params()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m"
        packed = packing.pack(params, rules)
        text, extras = json.dumps(TOKENIZER), {"max_length": 16}
        file.save_packed(path, CONFIG, packed, ACT, text, extras)
        return path.read_bytes()


def _params():
    """Parameters of ``CONFIG``: one matrix in halves, and what ``ACT`` learns."""
    params = small.params(CONFIG)
    query = params["encoder"]["layer_0"]["attention"]["query"]
    query["kernel"] = Split(query["kernel"], jnp.flip(query["kernel"]))
    batch = small.batch(2, 0)
    ids = np.minimum(batch["input_ids"], CONFIG.vocab_size - 1)
    return apply.init_act(params, ACT, {**batch, "input_ids": ids}, CONFIG)
