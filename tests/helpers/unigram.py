"""A tokenizer of XLM-R's kind: Unigram, as multilingual MiniLMs have it."""

import base64
import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
CHARSMAP = (Path(__file__).parents[1] / "golden" / "charsmap.bin").read_bytes()
"""Eight rules as SentencePiece compiles them: \ufb01 to fi, \u2167 to VIII, abc to yz..."""
PIECES = ("▁", "▁the", "▁un", "want", "ed", "é", "▁caf", "▁猫", "\t", "ca")
LINES = ("The unwanted café", "the  猫 now <mask>", "<s> it", "\tthe x\u00a0y", "🙂")


@functools.cache
def unigram() -> str:
    """Return the text of a ``tokenizer.json``."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    scored = [(p, -3.5 - i / 7) for i, p in enumerate((*PIECES, *letters))]
    words = [*((word, 0.0) for word in SPECIAL), *scored, ("<mask>", 0.0)]
    made = tokenizers.Tokenizer(models.Unigram(words, unk_id=3))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    added = [tokenizers.AddedToken(word, special=True) for word in (*SPECIAL, "<mask>")]
    made.add_special_tokens(added)
    return made.to_str()


FIELDS = {"model_type": "bert", "vocab_size": 64, "pad_token_id": 0}
"""Of ``config.json``: multilingual MiniLMs say 0 where ``<pad>`` is 1."""


def folder(kind: str, charsmap: bytes = b"") -> dict[str, str]:
    """Return ``{name: text}`` of a folder's files, of a tokenizer class."""
    whole = json.loads(unigram())
    if charsmap:
        table = base64.b64encode(charsmap).decode()
        whole["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    settings = {"tokenizer_class": kind, "model_max_length": 12}
    return {
        "tokenizer.json": json.dumps(whole),
        "config.json": json.dumps(FIELDS),
        "tokenizer_config.json": json.dumps(settings),
    }
