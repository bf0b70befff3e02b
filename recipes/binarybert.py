"""BinaryBERT: a half-width ternary BERT, split into a full-width binary one.

Paper      Bai et al. 2021, "BinaryBERT: Pushing the Limit of BERT Quantization"
           (arXiv:2012.15701): a student of half the heads and half the feed-forward
           neurons (the most important ones) is fine-tuned, then trained with 2-bit
           weights; each ternary matrix is split into two binary ones, which together
           are as large as the full width's, and training continues. 2-bit and 1-bit
           each have Stage-I (hidden states and attention scores) and Stage-II (logits).
Teacher    of Stage-I: the half-width FP32 model; of Stage-II: the same, or, with
           logits_from=teacher, the full-width one.
Bits       act_bits=8: clips that learn (PACT), BinaryBERT's sites and ranges;
           act_bits=4: learned steps (LSQ); 1 to 3: elastic binarisation (BiT,
           arXiv:2205.13016); 32: activations are not quantised.
Width      half=false trains, splits and packs the full width: twice the size.
Differs    probabilities are averaged over examples, not over classes too; padding
           counts as there, but a batch is padded to its bucket, not to max_length; one
           clip a site serves both halves of a matrix, since they have one input, and
           biases are not halved.
Measured   nothing: BERT-base has not been run with this recipe;
           recipes/multistage_quickstart.py measures splitting with a packaged model.
Command    bitflax run binarybert --out runs/binarybert --set task=glue/mrpc \\
               --set data_dir=MRPC
"""

import functools

import bitflax as bf


def activations(bits: int):
    """Return the activations' quantizers of so many bits."""
    if bits == 32:
        return None
    if bits == 8:
        return bf.binarybert_act(8)
    return bf.lsq_act(4) if bits == 4 else bf.elastic_act(bits)


def recipe(
    *,
    task: str = "glue/mrpc",
    data_dir: str | None = None,
    augment: str | None = None,
    teacher: str = "google-bert/bert-base-uncased",
    teacher_epochs: int = 3,
    teacher_lr: float = 5e-5,
    half: bool = True,
    heads: int = 6,
    ffn: int = 1536,
    half_epochs: int = 3,
    half_lr: float = 5e-5,
    logits_from: str = "half",
    act_bits: int = 8,
    epochs: int = 3,
    lr: float = 5e-5,
    batch_size: int = 32,
    max_length: int = 128,
    limit: int | None = None,
    seed: int = 0,
) -> bf.Recipe:
    optim = bf.Optim(kind="bertadam", lr=lr)
    ternary, act = bf.binarybert_2bit(), activations(act_bits)
    states = bf.weighted(
        hidden=(1.0, functools.partial(bf.hidden_mse, count_padding=True)),
        scores=(1.0, functools.partial(bf.score_mse, count_padding=True)),
    )
    logits = bf.weighted(logits=(1.0, bf.soft_labels))
    guide = "half" if half else "teacher"

    def both(name, rules, init):
        """Return Stage-I and Stage-II of one kind of weights."""
        bits = {"rules": rules, "act": act, "epochs": epochs, "optim": optim}
        first = bf.Stage(
            name=f"{name}-1", init=init, teacher=guide, loss=states, evals=1, **bits
        )
        final = logits_from if half else "teacher"
        second = bf.Stage(
            name=f"{name}-2", teacher=final, loss=logits, keep="best", **bits
        )
        return first, second

    narrow = bf.Stage(
        name="half",
        init=bf.Init(width=(heads, ffn)),
        loss=logits,
        epochs=half_epochs,
        optim=bf.Optim(kind="bertadam", lr=half_lr),
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
        teacher=bf.Teacher(
            folder=None if teacher_epochs else teacher,
            pretrained=teacher,
            epochs=teacher_epochs,
            optim=bf.Optim(lr=teacher_lr),
        ),
        stages=(
            *((narrow,) if half else ()),
            *both("2bit", ternary, bf.Init()),
            *both("1bit", bf.binarybert_1bit(), bf.Init(split=ternary)),
        ),
        seed=seed,
    )
