"""Figure 2's left side, whole: general KD, FP32, 2 bits, weight splitting, 1 bit.

Paper      The multi-stage way that XTC compares itself with (Wu et al. 2022,
           arXiv:2206.01859, figure 2): general distillation and Stage-I, Stage-II as
           TinyBERT's (arXiv:1909.10351), ternary weights as TernaryBERT's
           (arXiv:2009.12812), splitting as BinaryBERT's (arXiv:2012.15701).
Task       as in quickstart.py: a diagnosis in words -> its ICD-10-CM chapter.
Teacher    the packaged MiniLM, fine-tuned here; the general stage learns from it as it
           is before fine-tuning. With teacher_epochs=0, `teacher` is a fine-tuned
           folder and `pretrained` teaches the general stage.
Command    bitflax run multistage_quickstart --out runs/multistage
Measured   accuracy, seeds 0, 1, 2 (mean, sample deviation): teacher 0.8043 (0.003),
           FP32 0.7939 (0.001), 2-bit 0.7978 (0.003), 1-bit 0.7963 (0.004; 99.0 % of
           the teacher's), packed 0.7970 (0.004), 4.96 MB. The single-stage way, equal
           steps: 1-bit 0.7947 (0.005), packed 0.7934 (0.005), 2.73 MB.
Time       17.5 minutes on two nearly idle cores, teacher and
           compiling included (the teacher 221 s, general KD 210 s).
Lost       higher rates in the quantised Stage-II (one seed, packed): 0.801 with 1e-4,
           0.799 with 2e-4, 0.787 with 5e-4.
"""

import functools

import bitflax as bf


def recipe(
    *,
    task: str = "icd10cm",
    data_dir: str | None = None,
    augment: str | None = None,
    teacher: str = "minilm",
    pretrained: str | None = "minilm",
    layers: tuple[int, ...] = (1, 3, 5),
    limit: int | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    teacher_epochs: int = 3,
    teacher_lr: float | None = None,
    source: str = "icd10cm",
    length: int = 64,
    general_steps: int = 257,
    general_lr: float = 3e-4,
    stage1_epochs: int = 2,
    stage1_lr: float = 3e-4,
    stage2_epochs: int = 2,
    stage2_lr: float = 3e-4,
    quantised1_lr: float = 5e-4,
    quantised2_lr: float = 1e-4,
    per: str = "channel",
    seed: int = 0,
) -> bf.Recipe:
    hidden = bf.layer_pairs(layers, hidden=True)
    states = bf.weighted(
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=bf.layer_pairs(layers))),
    )
    logits = bf.weighted(logits=(1.0, bf.soft_labels))
    teach = bf.Teacher(folder=teacher, pretrained=pretrained)
    if teacher_epochs:
        optim = bf.Optim(lr=teacher_lr)
        teach = bf.Teacher(pretrained=teacher, epochs=teacher_epochs, optim=optim)

    def both(name, init=None, rates=(quantised1_lr, quantised2_lr), **bits):
        """Return Stage-I and Stage-II of one kind of weights."""
        first = bf.Stage(
            name=f"{name}-1",
            init=init or bf.Init(),
            loss=states,
            epochs=stage1_epochs,
            evals=1,
            optim=bf.Optim(lr=rates[0]),
            **bits,
        )
        second = bf.Stage(
            name=f"{name}-2",
            loss=logits,
            epochs=stage2_epochs,
            evals=2,
            optim=bf.Optim(lr=rates[1]),
            **bits,
        )
        return first, second

    ternary, act = bf.xtc_2bit(per=per), bf.symmetric(bits=8)
    general = bf.Stage(
        name="general",
        corpus=bf.Corpus(source=source, length=length, batch_size=batch_size),
        init=bf.Init(layers=layers),
        loss=states,
        steps=general_steps,
        evals=2,
        optim=bf.Optim(lr=general_lr),
    )
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
        teacher=teach,
        stages=(
            general,
            *both("fp32", rates=(stage1_lr, stage2_lr)),
            *both("2bit", rules=ternary, act=act),
            *both(
                "1bit",
                bf.Init(split=ternary),
                rules=bf.binary_rules(ternary),
                act=act,
            ),
        ),
        seed=seed,
    )
