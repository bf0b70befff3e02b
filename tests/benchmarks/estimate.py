"""What XTC's recipe would cost on accelerators: FLOP counted, hours assumed.

The 1-bit distillation step of BERT-base, 12 layers into 6, is traced here and nothing
is run: its FLOP are those that XLA counts in it. Hours are FLOP over peak FLOP/s times a
share of the peak that is *assumed*, as are MNLI's mean length and what of a bucketed
batch is padding. What a step of a slice moves and holds, ``tests.benchmarks.compile``
says.

    python -m tests.benchmarks.estimate > estimate.json
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bitflax as bf
from bitflax.types import INPUTS
from tests.benchmarks import common, steps

EXAMPLES = 392_702
"""MNLI's training examples."""
DEV = 9_815 + 9_832
EPOCHS = 18
"""XTC's single stage, the recipe's default; scored on dev after each."""
TEACHER_EPOCHS = 3
LONGEST = 128


class Machine(NamedTuple):
    """Chips, and their peak in bfloat16 without sparsity."""

    name: str
    chips: int
    peak: float


MACHINES = (
    Machine("v5e-8", 8, 197e12),
    Machine("v5e-32", 32, 197e12),
    Machine("H100 SXM x8", 8, 989e12),
)


def batch_of(rows: int, length: int) -> dict[str, Any]:
    """Return the shapes of a batch."""
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    row = jax.ShapeDtypeStruct((rows,), jnp.int32)
    weight = jax.ShapeDtypeStruct((rows,), jnp.float32)
    return dict.fromkeys(INPUTS, ids) | {"labels": row, "weight": weight}


def lowered(kind: str, name: str, rows: int, length: int) -> Any:
    """Return a step, traced for one device, from shapes alone."""
    teacher, student, layers = steps.configs(name)
    if kind == "fine-tuning":
        student = teacher
    step, optimizer = steps.train_step(kind, teacher, student, layers)
    init = functools.partial(bf.init_params, student)
    state = jax.eval_shape(
        lambda key: bf.init_state(init(key), optimizer, key=key), jax.random.key(0)
    )
    params = None
    if kind != "fine-tuning":
        params = jax.eval_shape(
            functools.partial(bf.init_params, teacher), jax.random.key(0)
        )
    return jax.jit(step, donate_argnums=0).lower(state, params, batch_of(rows, length))


@functools.cache
def flop(kind: str, name: str, rows: int, length: int) -> float:
    """Return the FLOP of a step as XLA counts them, before it optimises."""
    return lowered(kind, name, rows, length).cost_analysis()["flops"]


def per_example(kind: str, name: str, length: int) -> float:
    """Return the FLOP that one example more adds to a step."""
    return (flop(kind, name, 8, length) - flop(kind, name, 4, length)) / 4


def by_rule(name: str, length: int) -> float:
    """Return an example's FLOP by the rule 6 N D for a student, 2 N D for its teacher.

    N are the weights of the encoder's matrices, D the tokens; the products of attention,
    ``4 length width`` a token and layer, come on top.
    """
    teacher, student, _ = steps.configs(name)

    def forward(config: bf.BertConfig) -> float:
        width, inner = config.hidden_size, config.intermediate_size
        weights = 4 * width**2 + 2 * width * inner
        return config.num_hidden_layers * (2 * weights + 4 * length * width)

    return length * (3 * forward(student) + forward(teacher))


def quadratic(kind: str, name: str) -> Any:
    """Return FLOP an example by its length: ``a n + b n^2``, exact at two lengths."""
    lengths = np.array([LONGEST // 2, LONGEST])
    counted = [per_example(kind, name, int(n)) for n in lengths]
    a, b = np.linalg.solve(np.stack([lengths, lengths**2], 1), counted)
    return lambda n: a * n + b * n**2


def whole(name: str, positions: float) -> float:
    """Return the FLOP of the recipe: teacher, student, and the student's scores."""
    tuning, student = quadratic("fine-tuning", name), quadratic("1-bit", name)
    # Of the teacher's tuning, half the layers and a third of the work: forward only.
    scoring = quadratic("fine-tuning", name)(positions) / 6
    training = TEACHER_EPOCHS * tuning(positions) + EPOCHS * student(positions)
    return EXAMPLES * training + EPOCHS * DEV * scoring


def main() -> None:
    """Print the estimate; the tables go to stderr, the JSON to stdout."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", choices=common.MODELS, default="bert-base")
    options.add_argument("--mean-length", type=float, default=39.0, help="assumed")
    options.add_argument(
        "--filled", type=float, default=0.9, help="assumed: real share"
    )
    options.add_argument("--utilisation", type=float, default=0.35, help="assumed")
    args = options.parse_args()
    counted, rule = (
        per_example("1-bit", args.model, LONGEST),
        by_rule(args.model, LONGEST),
    )
    common.say(
        f"FLOP an example of {LONGEST} tokens: {counted:.4g}; by 6 N D {rule:.4g}"
    )
    ways = {f"padded to {LONGEST}": LONGEST, "bucketed": args.mean_length / args.filled}
    flops = {way: whole(args.model, n) for way, n in ways.items()}
    hours = {
        machine.name: {
            way: total / (machine.chips * machine.peak * args.utilisation) / 3600
            for way, total in flops.items()
        }
        for machine in MACHINES
    }
    lines = [
        [machine, *(f"{value:.2f}" for value in each.values())]
        for machine, each in hours.items()
    ]
    common.say("\n" + common.table(["hours", *ways], lines))
    common.write(
        "estimate",
        args,
        {"flop_per_example": counted, "by_rule": rule, "flop": flops,
         "hours": hours},
    )  # fmt: skip


if __name__ == "__main__":
    main()
