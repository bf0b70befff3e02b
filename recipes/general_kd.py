"""General distillation: a smaller FP32 BERT for any task, from a pretrained one.

Paper      TinyBERT (Jiao et al. 2020, arXiv:1909.10351), section 3.2: hidden states and
           attention scores on a large text corpus; no labels, no logits. The student
           takes layers of the teacher; with `hidden_size` it is drawn at random, and a
           learned projection compares its hidden states with the teacher's.
Text       by default the ICD-10-CM texts of the categories that the task icd10cm learns
           from; `source` takes a folder of .txt files, or wiki40b/en.
Result     1-general/params in the run folder, a Hugging Face folder. A stage of
           another recipe starts from it by
           --set stages.0.init.source=runs/general/1-general/params
           --set stages.0.init.layers=none; tinybert has --set general=FOLDER
Command    bitflax run general_kd --out runs/general
TinyBERT   bitflax run general_kd --out runs/general --set teacher=FOLDER \\
               --set layers=2,5,8,11 --set hidden_size=312 --set heads=12 --set ffn=1200
"""

import functools

import bitflax as bf


def recipe(
    *,
    source: str = "icd10cm",
    data_dir: str | None = None,
    teacher: str = "minilm",
    layers: tuple[int, ...] = (1, 3, 5),
    hidden_size: int | None = None,
    heads: int = 12,
    ffn: int = 1200,
    length: int = 128,
    batch_size: int = 32,
    steps: int = 1000,
    lr: float = 3e-4,
    seed: int = 0,
) -> bf.Recipe:
    hidden = bf.layer_pairs(layers, hidden=True)
    init = bf.Init(layers=layers)
    if hidden_size is not None:
        init = bf.Init(
            shape=bf.Shape(
                num_hidden_layers=len(layers),
                hidden_size=hidden_size,
                num_attention_heads=heads,
                intermediate_size=ffn,
            )
        )
    return bf.Recipe(
        data=None,
        teacher=bf.Teacher(pretrained=teacher),
        stages=(
            bf.Stage(
                name="general",
                corpus=bf.Corpus(
                    source=source,
                    data_dir=data_dir,
                    length=length,
                    batch_size=batch_size,
                    seed=seed,
                ),
                init=init,
                loss=bf.weighted(
                    hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden)),
                    scores=(
                        1.0,
                        functools.partial(bf.score_mse, pairs=bf.layer_pairs(layers)),
                    ),
                ),
                steps=steps,
                optim=bf.Optim(lr=lr),
            ),
        ),
        seed=seed,
    )
