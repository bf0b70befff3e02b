"""What a run's programs cost to compile for a device that is not there.

    python -m tests.benchmarks.compile --target v5e:2x2 > compile.json

For a TPU the plugin ``libtpu`` is enough (``pip install 'jax[tpu]'``), for a GPU those of
``jax[cuda12]`` without a driver, with ``ptxas`` on the path. XLA:GPU cannot autotune
without a device: on a real one, where it is on, it is most of the time.
"""

import argparse
import dataclasses
import functools
import os
import re
import resource
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bitflax as bf
from bitflax import distillation, model, training, trees
from bitflax.packed import rounding
from bitflax.quantization import WORD_TABLE
from bitflax.recipe import Recipe, Stage, load_recipe, planned_steps
from bitflax.runs import initialization, stages
from bitflax.runs.experiment import output_shapes
from bitflax.runs.prepare import EVAL_ROWS
from bitflax.runs.stage_training import stage_step
from bitflax.training import parallel
from bitflax.types import INPUTS, Model
from tests.benchmarks import common

GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {cores} fpus_per_core: {fpus} threads_per_core_limit: {threads}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  memory_bandwidth: {bandwidth} device_memory_size: {memory} l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  cuda_compute_capability {{ major: {major} minor: {minor} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}" """
GPUS: dict[str, dict[str, Any]] = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "cores": 132,
        "fpus": 128, "threads": 2048, "shared": 233472, "optin": 232448,
        "bandwidth": 3352320000000, "memory": 84942979072, "cache": 52428800,
        "clock": 1.98,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB", "major": 8, "minor": 0, "cores": 108,
        "fpus": 64, "threads": 2048, "shared": 167936, "optin": 166912,
        "bandwidth": 2039000000000, "memory": 84942979072, "cache": 41943040,
        "clock": 1.41,
    },
    "l4": {
        "name": "NVIDIA L4", "major": 8, "minor": 9, "cores": 58, "fpus": 128,
        "threads": 1536, "shared": 102400, "optin": 101376, "bandwidth": 300096000000,
        "memory": 23553507328, "cache": 50331648, "clock": 2.04,
    },
    "t4": {
        "name": "Tesla T4", "major": 7, "minor": 5, "cores": 40, "fpus": 64,
        "threads": 1024, "shared": 65536, "optin": 65536, "bandwidth": 320064000000,
        "memory": 15812526080, "cache": 4194304, "clock": 1.59,
    },
}  # fmt: skip
"""NVIDIA's data sheets: cores are multiprocessors, memory in bytes and bytes/s."""
COLUMNS = (
    "program", "CPU s", "lines", "kernels", "all-reduces", "GFLOP", "accessed, MB",
    "temporary, MB", "held, MB",
)  # fmt: skip


def mesh_of(target: str) -> jax.sharding.Mesh:
    """Return the devices of a TPU slice (``v5e:2x4``), a GPU, or this processor.

    ``v5e:1x1`` is one chip of a host's four, as Colab lends it.
    """
    if target == "cpu":
        return parallel.mesh()
    if target not in GPUS:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        slice_of = "v5e:2x2" if target == "v5e:1x1" else target
        devices = topologies.get_topology_desc(slice_of, "tpu").devices
        return parallel.mesh(devices[:1] if target == "v5e:1x1" else devices)
    options = {"topology": "1x1x1", "target_config": GPU.format(**GPUS[target])}
    return parallel.mesh(
        topologies.get_topology_desc("1x1x1", "cuda", **options).devices
    )


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run of a recipe compiles: names, what is jitted, and its shapes.

    It covers recipes like the quickstart: no corpus, no student of another width, no
    learned activation quantizer, and stages whose kept outputs would not fit in memory,
    so that the teacher runs in every step.

    Attributes:
      mesh: the devices.
      plan: the recipe.
      config: the teacher's, with the words that the task uses.
      rows: of a batch, on all devices.
      length: of its rows.
      examples: of the task, without edits.
      dev: examples that are scored.
    """

    mesh: jax.sharding.Mesh
    plan: Recipe
    config: bf.BertConfig
    rows: int
    length: int
    examples: int
    dev: int

    def __iter__(self) -> Iterator[tuple[str, Any, tuple]]:
        """Yield the programs in the order of a run."""
        init, key = functools.partial(bf.init_params, self.config), jax.random.key(0)
        teacher = student = Model(self.config, jax.eval_shape(init, key))
        taught = self.plan.teacher
        if taught.folder is None:
            loss, classes = bf.label_cross_entropy, self.config.num_labels
            tuning = self._rounded(stages.fine_tuning(taught, loss, classes))
            yield self._step(tuning, teacher, None)
        yield self._scores("teacher", teacher, None, taught.evals)
        for stage in map(self._rounded, self.plan.stages):
            source = teacher if stage.init.source == "teacher" else student
            student = initialization.initial_student(stage.init, source, key)
            self._check(stage, student, teacher)
            yield self._step(stage, student, teacher)
            yield self._scores(stage.name, student, stage.act, stage.evals)
        for stage in self.plan.stages[-1:]:
            flat = trees.flatten(self._on(student.params))
            yield from small_programs(flat, stage.rules, self.plan.rest)

    def _rounded(self, stage: Stage) -> Stage:
        """Return a stage with the dtypes that the devices choose."""
        return dataclasses.replace(
            stage,
            dtype=training.chosen_dtype(stage.dtype),
            teacher_dtype=training.chosen_dtype(stage.teacher_dtype),
        )

    def _check(self, stage: Stage, student: Model, teacher: Model) -> None:
        """Refuse a stage of which a run would compile something else."""
        act = model.at_sites(stage.act, student.config).values()
        wide = teacher.config.hidden_size
        others = {
            "a corpus": stage.corpus is not None,
            "a student of another width": student.config.hidden_size != wide,
            "learned activation quantizers": any(map(model.learns, act)),
            "another teacher": stage.teacher != "teacher",
            "a folder to begin with": stage.init.source not in ("previous", "teacher"),
        }
        for what in (name for name, there in others.items() if there):
            raise SystemExit(f"{stage.name}: {what}: not covered")
        said, told = output_shapes(stage, teacher, student, self._batch())
        used = distillation.used_outputs(stage.loss, said, told, self._batch())
        if used == {"logits"}:
            raise SystemExit(f"{stage.name}: kept outputs of the teacher: not covered")

    def _on(self, tree: Any, *axes: str) -> Any:
        """Return shapes that say which device holds which share."""
        at = NamedSharding(self.mesh, P(*axes))

        def placed(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

        return jax.tree.map(placed, tree)

    def _inputs(self, rows: int) -> dict[str, Any]:
        ids = jax.ShapeDtypeStruct((rows, self.length), jnp.int32)
        return self._on(dict.fromkeys(INPUTS, ids), parallel.AXIS)

    def _batch(self) -> dict[str, Any]:
        kinds = {"labels": jnp.int32, "weight": jnp.float32}
        row = {k: jax.ShapeDtypeStruct((self.rows,), kind) for k, kind in kinds.items()}
        return self._inputs(self.rows) | self._on(row, parallel.AXIS)

    def _scores(
        self, name: str, scored: Model, act: Any, evals: int
    ) -> tuple[str, Any, tuple]:
        rows = max(EVAL_ROWS, self.mesh.size)
        positions = evals * -(-self.dev // rows) * rows * self.length
        flop = model.forward_flop(scored.config, positions // self.mesh.size)
        step = training.make_eval_step(
            bf.bert(scored.config, act), model.compiler_options(flop)
        )
        return f"scores, {name}", step, (self._on(scored.params), self._inputs(rows))

    def _step(
        self, stage: Stage, student: Model, teacher: Model | None
    ) -> tuple[str, Any, tuple]:
        """Return a stage's step, with the teacher in it."""
        epoch = -(-self.examples // self.rows)
        steps = planned_steps(stage, epoch, epoch, self.config.num_labels)
        positions = steps * self.rows * self.length // self.mesh.size
        flop = 3 * model.forward_flop(student.config, positions)
        teach, held = None, None
        if teacher is not None:
            flop += model.forward_flop(teacher.config, positions)
            teach = bf.bert(teacher.config, dtype=stage.teacher_dtype)
            held = self._on(teacher.params)
        optimizer = bf.make_optimizer(stage.optim, steps)
        step = stage_step(stage, self.plan.rest, student.config, teach, optimizer)
        mapped = training.data_parallel(step, self.mesh, model.compiler_options(flop))
        begin = functools.partial(bf.init_state, optimizer=optimizer)
        state = jax.eval_shape(
            lambda params: begin(params, key=jax.random.key(1)), student.params
        )
        name = f"step, {stage.name}{' bf16' if stage.dtype else ''}"
        return name, mapped, (self._on(state), held, self._batch())


def small_programs(
    flat: dict[str, Any], rules: Any, rest: Any
) -> Iterator[tuple[str, Any, tuple]]:
    """Yield the programs that compute what a packed file will hold, leaf by leaf."""
    found = rounding._roundings(flat, rules, rest)
    short = {path: flat[path] for path, fn in found.items() if fn is rounding._half}
    yield "values, float16", rounding._halves, (short,)
    halving, seen = rounding._halving, set()
    for path, fn in (found | trees.match(rules, flat)).items():
        fn = halving(fn) if path == WORD_TABLE else fn
        if path not in short and (fn, flat[path].shape) not in seen:
            seen.add((fn, flat[path].shape))
            yield f"values, {path}", jax.jit(fn), (flat[path],)


def cpu_seconds() -> float:
    """Return what this process and its children, XLA's ptxas, have computed."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measured(fn: Any, shapes: tuple) -> dict[str, float]:
    """Compile a program and count what is in it."""
    lowered = fn.lower(*shapes)
    began = cpu_seconds()
    compiled = lowered.compile()
    seconds, text = cpu_seconds() - began, compiled.as_text()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    calls = re.findall(r" (?:fusion|custom-call|convolution|dot)[(]", text)
    return {
        "CPU s": seconds,
        "lines": text.count("\n"),
        "kernels": len(calls),
        "all-reduces": len(re.findall(r" all-reduce(?:-start)?[(]", text)),
        "GFLOP": cost.get("flops", 0.0) / 1e9,
        "accessed, MB": cost.get("bytes accessed", 0.0) / 1e6,
        "temporary, MB": memory.temp_size_in_bytes / 1e6,
        "held, MB": memory.argument_size_in_bytes / 1e6,
    }


def main() -> None:
    """Print the programs; the table goes to stderr, the JSON to stdout."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--target", default="cpu", help="v5e:2x4, v5e:1x1, h100, a100, l4, t4, cpu, ..."
    )
    options.add_argument("--recipe", default="quickstart")
    options.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options.add_argument("--model", choices=common.MODELS, default="minilm")
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--length", type=int, default=96)
    options.add_argument("--words", type=int, default=5099, help="of the task")
    options.add_argument("--examples", type=int, default=8222, help="to learn from")
    options.add_argument("--dev", type=int, default=1952, help="examples to score")
    options.add_argument("--only", default="", help="programs whose name has this")
    args = options.parse_args()
    found = every(args)
    lines = [
        [name, *(f"{each[c]:.1f}" for c in COLUMNS[1:])] for name, each in found.items()
    ]
    lines.append(["all", f"{sum(x['CPU s'] for x in found.values()):.1f}"])
    lines[-1] += [""] * (len(COLUMNS) - 2)
    common.say(f"{args.target}\n\n" + common.table([*COLUMNS], lines))
    common.write("compile", args, {"programs": found})


def every(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return what every program of a target costs, as a run there compiles it."""
    mesh = mesh_of(args.target)
    platform = "gpu" if args.target in GPUS else "tpu"
    platform = "cpu" if args.target == "cpu" else platform
    with (
        mock.patch.object(parallel, "mesh", return_value=mesh),
        mock.patch.object(jax, "default_backend", return_value=platform),
    ):
        plan = load_recipe(args.recipe, args.set)
        shape: dict[str, Any] = common.MODELS[args.model] | {"vocab_size": args.words}
        sizes = (args.rows, args.length, args.examples, args.dev)
        found = Programs(mesh, plan, bf.BertConfig(**shape), *sizes)
        return {
            name: measured(fn, given) for name, fn, given in found if args.only in name
        }


if __name__ == "__main__":
    main()
