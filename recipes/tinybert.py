"""TinyBERT: a small FP32 BERT in two stages of distillation, general and for the task.

Paper      Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language
           Understanding" (arXiv:1909.10351): general distillation on a large corpus
           from the pretrained BERT; then, from the fine-tuned one, Stage-I (hidden
           states and attention scores) and Stage-II (logits) on the augmented task.
Student    4 layers, 312 wide, drawn at random (the default: a learned projection
           compares its hidden states with the teacher's 768); or, with
           hidden_size=none, layers of the pretrained teacher:
           --set layers=1,3,5,7,9,11 --set hidden_size=none
General    `source` is the corpus; or take what recipes/general_kd.py has made:
           --set general=runs/general/1-general/params
Augment    bitflax augment glue/mrpc --data-dir MRPC --vectors glove --out mrpc.jsonl,
           then --set augment=mrpc.jsonl (--masked-lm FOLDER as well, if there is one)
Teacher    is fine-tuned here; or, with teacher_epochs=0, `teacher` is a fine-tuned
           folder and `pretrained` the model before fine-tuning, which teaches the
           general stage.
Optimizer  BertAdam: no bias correction, each parameter's gradient clipped by itself.
Differs    padding counts in no loss (in the paper's code it does: count_padding=True);
           probabilities are averaged over examples, not over classes too
           (reduction="classes"); if the widths agree there is no projection, and with
           hidden_size=none the student takes layers (there: always a projection and a
           random start).
Measured   nothing: it has not been run with BERT-base and a large corpus.
           recipes/multistage_quickstart.py runs the same stages on packaged data.
Command    bitflax run tinybert --out runs/tinybert --set task=glue/mrpc \\
               --set data_dir=MRPC --set source=wiki/
"""

import functools

import bitflax as bf


def recipe(
    *,
    task: str = "glue/mrpc",
    data_dir: str | None = None,
    augment: str | None = None,
    teacher: str = "google-bert/bert-base-uncased",
    pretrained: str | None = None,
    teacher_epochs: int = 3,
    teacher_lr: float = 5e-5,
    source: str = "wiki40b/en",
    general: str | None = None,
    general_steps: int = 100_000,
    general_lr: float = 1e-4,
    length: int = 128,
    layers: tuple[int, ...] = (2, 5, 8, 11),
    hidden_size: int | None = 312,
    heads: int = 12,
    ffn: int = 1200,
    stage1_epochs: int = 20,
    stage1_lr: float = 5e-5,
    stage2_epochs: int = 3,
    stage2_lr: float = 3e-5,
    batch_size: int = 32,
    max_length: int = 128,
    limit: int | None = None,
    seed: int = 0,
) -> bf.Recipe:
    pairs = bf.layer_pairs(layers, hidden=True)
    states = bf.weighted(
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=pairs)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=bf.layer_pairs(layers))),
    )
    init = bf.Init(layers=layers)
    if hidden_size is not None:
        shape = bf.Shape(
            num_hidden_layers=len(layers),
            hidden_size=hidden_size,
            num_attention_heads=heads,
            intermediate_size=ffn,
        )
        init = bf.Init(shape=shape)
    before = ()
    if general is not None:
        init = bf.Init(source=general)
    else:
        corpus = bf.Corpus(source=source, length=length, batch_size=batch_size)
        optim = bf.Optim(kind="bertadam", lr=general_lr)
        before = (
            bf.Stage(
                name="general",
                corpus=corpus,
                init=init,
                loss=states,
                steps=general_steps,
                optim=optim,
            ),
        )
        init = bf.Init()
    return bf.Recipe(
        data=bf.Data(
            task=task,
            data_dir=data_dir,
            augment=augment,
            max_length=max_length,
            batch_size=batch_size,
            limit=limit,
            seed=seed,
        ),
        teacher=bf.Teacher(
            folder=None if teacher_epochs else teacher,
            pretrained=teacher if teacher_epochs else pretrained,
            epochs=teacher_epochs,
            optim=bf.Optim(lr=teacher_lr),
        ),
        stages=(
            *before,
            bf.Stage(
                name="stage1",
                init=init,
                loss=states,
                epochs=stage1_epochs,
                evals=1,
                optim=bf.Optim(kind="bertadam", lr=stage1_lr),
            ),
            bf.Stage(
                name="stage2",
                loss=bf.weighted(logits=(1.0, bf.soft_labels)),
                epochs=stage2_epochs,
                keep="best",
                optim=bf.Optim(kind="bertadam", lr=stage2_lr),
            ),
        ),
        seed=seed,
    )
