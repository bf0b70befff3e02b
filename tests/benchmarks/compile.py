"""What a run's programs cost to compile for a device that is not there.

    python -m tests.benchmarks.compile --target v5e:2x2 > compile.json

For a TPU the plugin ``libtpu`` is enough (``pip install 'jax[tpu]'``), for a GPU those of
``jax[cuda12]`` without a driver, with ``ptxas`` on the path. XLA:GPU cannot autotune
without a device: on a real one, where it is on, it is most of the time.
"""

import argparse
import functools
import math
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
from bitflax import model, training, trees
from bitflax.distillation import teacher_outputs
from bitflax.packed import rounding
from bitflax.quantization import WORD_TABLE
from bitflax.training import parallel
from bitflax.types import INPUTS
from tests.benchmarks import common, steps

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


def programs(
    mesh: jax.sharding.Mesh, name: str, rows: int, length: int, taken: int, scored: int
) -> Iterator[tuple[str, Any, tuple]]:
    """Yield the programs of the quickstart: a name, what is jitted, its shapes.

    Args:
      mesh: the devices.
      name: of ``common.MODELS``.
      rows: of a batch, on all devices.
      length: of its rows.
      taken: steps of a stage.
      scored: batches that a stage scores, all evaluations together.
    """
    whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P(parallel.AXIS))

    def on(tree: Any, place: NamedSharding = whole) -> Any:
        def at(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        return jax.tree.map(at, tree)

    def options(flop: float, calls: int) -> dict[str, Any] | None:
        return model.compiler_options(flop * calls)

    teacher, student, layers = steps.configs(name)
    params = jax.eval_shape(
        functools.partial(bf.init_params, teacher), jax.random.key(0)
    )
    small = jax.eval_shape(lambda whole: bf.take_layers(whole, layers), params)
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    row = {"labels": jnp.int32, "weight": jnp.float32}
    inputs = on(dict.fromkeys(INPUTS, ids), cut)
    batch = inputs | {
        key: jax.ShapeDtypeStruct((rows,), kind, sharding=cut)
        for key, kind in row.items()
    }
    forward = functools.partial(
        model.forward_flop, positions=rows * length // mesh.size
    )
    dtype = training.chosen_dtype("auto")
    words = " bf16" if dtype else ""
    outputs = jax.eval_shape(bf.bert(teacher), params, batch)
    reader = teacher_outputs.outputs_reader(outputs)
    shapes = dict(
        zip(teacher_outputs._names(outputs), jax.tree.leaves(outputs), strict=True)
    )
    loss = steps.single_stage_loss(layers)
    said = jax.eval_shape(bf.bert(student), small, batch)
    used = teacher_outputs.used_outputs(loss, said, outputs, batch)
    kept = {teacher_outputs.PREFIX + key: on(shapes[key], cut) for key in used}
    # Of a batch, on all devices, the teacher running.
    flop = mesh.size * (3 * forward(student) + forward(teacher))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in kept.values())
    keeps = training.keeps_outputs(flop, size)
    words += " kept" if keeps else ""
    for kind, start in (
        ("fine-tuning", params), (f"fp32{words}", small), (f"1-bit{words}", small),
    ):  # fmt: skip
        taught = kind != "fine-tuning"
        config = student if taught else teacher
        given = reader if taught and keeps else None
        step, optimizer = steps.train_step(kind, teacher, config, layers, reader=given)
        begin = functools.partial(training.init_state, optimizer=optimizer)
        state = jax.eval_shape(lambda p, b=begin: b(p, key=jax.random.key(1)), start)
        cost = 3 * forward(config) + (forward(teacher) if taught and not keeps else 0)
        mapped = training.data_parallel(step, mesh, options(cost, taken))
        more = kept if taught and keeps else {}
        held = on(params) if taught and not keeps else None
        yield f"step, {kind}", mapped, (on(state), held, batch | more)
    for kind, config, start, act in (
        ("teacher", teacher, params, None), ("student", student, small, None),
        ("1-bit student", student, small, steps.ACT),
    ):  # fmt: skip
        score = training.make_eval_step(
            bf.bert(config, act), options(forward(config), scored)
        )
        yield f"scores, {kind}", score, (on(start), inputs)
    if keeps:
        told = bf.bert(teacher, dtype=dtype)

        def tell(params: Any, batch: Any) -> dict[str, Any]:
            out = told(params, batch)
            found = dict(
                zip(teacher_outputs._names(out), jax.tree.leaves(out), strict=True)
            )
            return {key: found[key] for key in used}

        passed = options(forward(teacher), taken // 3)
        yield (
            "teacher's outputs",
            jax.jit(tell, compiler_options=passed),
            (on(params), inputs),
        )
    yield from small_programs(trees.flatten(on(small)), bf.xtc_1bit(per="channel"))


def small_programs(
    flat: dict[str, Any], rules: Any
) -> Iterator[tuple[str, Any, tuple]]:
    """Yield the programs that compute what a packed file will hold, leaf by leaf."""
    found = rounding._roundings(flat, rules, "int8")
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
    options.add_argument("--model", choices=common.MODELS, default="minilm")
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--length", type=int, default=80)
    options.add_argument("--steps", type=int, default=771, help="of a stage")
    options.add_argument("--scored", type=int, default=183, help="batches of a stage")
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
        shape = (mesh, args.model, args.rows, args.length, args.steps, args.scored)
        return {
            name: measured(fn, given)
            for name, fn, given in programs(*shape)
            if args.only in name
        }


if __name__ == "__main__":
    main()
