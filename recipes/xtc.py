"""XTC: extreme compression in one stage, with the paper's own settings.

Paper      Wu, Yao, Zhang, Li, He 2022, "Extreme Compression for Pre-trained
           Transformers Made Simple and Efficient" (arXiv:2206.01859), sections 4 and
           5: take layers of the fine-tuned teacher, then distil logits, hidden states
           and attention scores with quantised weights in one long stage: 18 epochs,
           the first of them warm-up, batch 32, lr 5e-5.
Layers     of BERT-base's 12: Skip-BERT6 takes 1,3,5,7,9,11 (the default), Skip-BERT5
           takes 2,4,6,8,10.
Weights    bits=1: signs and one scale a matrix; bits=2: ternary. The word embedding has
           one scale a row; activations have 8 bits and one scale a token (XTC's levels,
           [-128, 127]).
Expected   the paper's abstract: with 5 of BERT-base's layers and 1 bit, a file 50 times
           smaller (BERT-base's is 438 MB) and better than the 6-layer FP32 TinyBERT on
           GLUE. Its tables of single tasks are not repeated here.
Measured   sizes only: 8.53 MB with 5 layers, 9.43 MB with 6, without the tokenizer. No
           score: BERT-base has not been run with this recipe.
Differs    padding counts in no loss (in the paper's code it does: count_padding=True,
           mask_value=-1e4), and the student's embeddings learn from the teacher's
           embeddings (there, with Skip-BERT5, from its first layer:
           layer_pairs(..., embeddings="first-1")).
Kept       the parameters of the epoch that scored best on dev, as in the paper's
           script: the score is selected on dev.
Teacher    a pretrained BERT, which is fine-tuned on the task first; or, with
           teacher_epochs=0, the folder of one that is (recipes/finetune.py makes it).
Command    bitflax run xtc --out runs/xtc --set task=glue/mrpc --set data_dir=MRPC
"""

import functools
from typing import Literal

import bitflax as bf

RULES = {1: bf.xtc_1bit, 2: bf.xtc_2bit}


def recipe(
    *,
    task: str = "glue/mrpc",
    data_dir: str | None = None,
    text: str | tuple[str, str] | None = None,
    label: str | None = None,
    dev: str | None = None,
    teacher: str = "google-bert/bert-base-uncased",
    teacher_epochs: int = 3,
    teacher_lr: float = 5e-5,
    layers: tuple[int, ...] = (1, 3, 5, 7, 9, 11),
    epochs: int = 18,
    bits: int = 1,
    lr: float = 5e-5,
    batch_size: int = 32,
    max_length: int = 128,
    limit: int | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "float32",
    seed: int = 0,
) -> bf.Recipe:
    if bits not in RULES:
        raise ValueError(f"bits must be 1 or 2, not {bits}")
    hidden = bf.layer_pairs(layers, hidden=True)
    loss = bf.weighted(
        # Over the classes too, as in the paper's code.
        logits=(1.0, functools.partial(bf.soft_labels, reduction="classes")),
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=bf.layer_pairs(layers))),
    )
    teach = bf.Teacher(folder=teacher)
    if teacher_epochs:
        optim = bf.Optim(lr=teacher_lr)
        teach = bf.Teacher(
            pretrained=teacher, epochs=teacher_epochs, optim=optim, dtype=dtype
        )
    return bf.Recipe(
        data=bf.Data(
            task=task,
            data_dir=data_dir,
            text=text,
            label=label,
            dev=dev,
            max_length=max_length,
            batch_size=batch_size,
            limit=limit,
            seed=seed,
        ),
        teacher=teach,
        stages=(
            bf.Stage(
                name=f"w{bits}a8",
                init=bf.Init(layers=layers),
                loss=loss,
                rules=RULES[bits](),
                act=bf.symmetric(bits=8, levels="full"),
                optim=bf.Optim(lr=lr, warmup=1 / max(epochs, 2)),
                dtype=dtype,
                teacher_dtype=dtype,
                epochs=epochs,
                evals=epochs,
                keep="best",
            ),
        ),
        seed=seed,
    )
