"""Quickstart: a 1-bit, 3-layer BERT on ICD-10-CM, taught by a fine-tuned MiniLM.

Paper      XTC's single-stage way (Wu et al. 2022, arXiv:2206.01859), figure 2's right
           side: take layers of the fine-tuned teacher, then distil logits, hidden
           states and attention scores; here first in FP32, then with 1-bit weights and
           8-bit activations.
Task       a diagnosis in words -> its ICD-10-CM chapter (21 classes; 8,222 texts to
           learn from, 1,952 to test on, no three-character category in both).
Teacher    the packaged MiniLM, fine-tuned here; or, with teacher_epochs=0, the folder
           of a BERT that is fine-tuned already.
Text       students learn the texts and three edits of each (augment=none: no edits).
Frozen     both students keep the teacher's word embedding; the 1-bit one its signs.
Length     depends on the data, unless epochs are given (bitflax.default_steps): here
           771 steps for the teacher and in FP32, 3,000 with 1 bit.
Rate       of the teacher, unless given: 1e-4 for two classes, else 2e-4.
Command    bitflax run quickstart --out runs/quickstart
Measured   accuracy, seeds 0, 1, 2 (mean, sample deviation; one score's standard error
           is 0.009), in bfloat16: teacher 0.8046 (0.005), FP32 0.7934 (0.003; 98.6 % of
           it), 1-bit 0.7994 (0.007), packed 0.7995 (0.007; 99.4 %); 2.73 MB. With
           the word embedding trained in FP32: 0.7959 (0.006), packed 0.7964 (0.002).
           GLUE, and what each default gains: bitflax/docs/results.md.
Lost       on one seed (teacher 0.8033, 6 epochs of 1 bit): logits averaged over the
           classes too, as in the papers' code, so that they count 1/21: 0.785 with
           one scale an output channel, 0.787 with one a matrix (lr 7e-4), against
           0.790 with logits averaged over examples (per channel, lr 5e-4). One scale a
           matrix, the paper's choice, and one a channel could not be told apart;
           per=tensor saves 43 kB.
"""

import functools
from typing import Literal

import bitflax as bf


def recipe(
    *,
    task: str = "icd10cm",
    data_dir: str | None = None,
    text: str | tuple[str, str] | None = None,
    label: str | None = None,
    dev: str | None = None,
    teacher: str = "minilm",
    layers: tuple[int, ...] = (1, 3, 5),
    limit: int | None = None,
    augment: str | None = "edits",
    max_length: int = 128,
    batch_size: int = 32,
    teacher_epochs: int | None = None,
    teacher_lr: float | None = None,
    fp32_epochs: int | None = None,
    fp32_lr: float = 3e-4,
    onebit_epochs: int | None = None,
    onebit_lr: float = 1e-3,
    per: str = "channel",
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    seed: int = 0,
) -> bf.Recipe:
    hidden = bf.layer_pairs(layers, hidden=True)
    loss = bf.weighted(
        logits=(1.0, bf.soft_labels),
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=bf.layer_pairs(layers))),
    )
    teach = bf.Teacher(folder=teacher)
    if teacher_epochs != 0:
        optim = bf.Optim(lr=teacher_lr)
        teach = bf.Teacher(
            pretrained=teacher, epochs=teacher_epochs, optim=optim, dtype=dtype
        )
    words = ("embeddings/word/embedding",)
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
            augment=augment,
            seed=seed,
        ),
        teacher=teach,
        stages=(
            bf.Stage(
                name="fp32",
                init=bf.Init(layers=layers),
                loss=loss,
                epochs=fp32_epochs,
                evals=3,
                optim=bf.Optim(lr=fp32_lr, frozen=words),
                dtype=dtype,
                teacher_dtype=dtype,
            ),
            bf.Stage(
                name="onebit",
                loss=loss,
                rules=bf.xtc_1bit(per=per),
                act=bf.symmetric(bits=8),
                epochs=onebit_epochs,
                evals=3,
                optim=bf.Optim(lr=onebit_lr, frozen=words),
                dtype=dtype,
                teacher_dtype=dtype,
            ),
        ),
        seed=seed,
    )
