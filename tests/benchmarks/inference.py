"""What a packed student costs to run: our engines against ONNX Runtime's own forms.

A 1-bit student of random weights, 8-bit activations, every second layer of the model.
Sides: the packed file in the native engine (and a ternary one) and in JAX; our ONNX
files; and the same student without rounding of activations in float32, as onnxruntime's
own quantiser makes it int8, and as OpenVINO's does, where openvino and nncf are
installed. All of a number
of threads alternate within one process, which may use that many cores, each for a
tenth of a second, or for one answer where that takes longer. Load time (from
the imports' end to the first answer, caches warm) and memory (the most that a process
held above what its imports took) come from processes of their own.

    python -m tests.benchmarks.inference --model bert-base --threads 1 2 > inference.json
"""

import contextlib
import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((1, 32), (1, 128), (32, 128))
SECONDS = 0.1
PACKED = "jax, packed file"
NATIVE = {"native": "xtc_1bit", "native, ternary": "xtc_2bit"}
OPENVINO = "OpenVINO int8"
FLOAT, DYNAMIC = "ORT float32", "ORT dynamic int8"
ONNX = {
    "onnx-int8": ("onnx-int8", -1),
    "onnx-int8, scale a tensor": ("onnx-int8", None),
    "onnx-fp32": ("onnx-fp32", -1),
}
"""Our files: the kind, and the axis of the activations' scales."""
SIDES = (*NATIVE, PACKED, *ONNX, FLOAT, DYNAMIC, OPENVINO)


def write_models(model: str, folder: Path) -> dict[str, int]:
    """Write a student's file of every side; return their bytes."""
    import jax

    import bitflax as bf
    from bitflax.errors import ConfigError
    from bitflax.inference import onnx_bert
    from bitflax.packed import file, packing
    from tests.benchmarks import common, steps

    _, config, _ = steps.configs(model)
    params = bf.init_params(config, jax.random.key(0))
    packed = packing.pack(params, bf.xtc_1bit())
    act = bf.symmetric(bits=8)
    file.save_packed(place(folder, PACKED), config, packed, act)
    for side, rules in NATIVE.items():
        each = packing.pack(params, getattr(bf, rules)())
        file.save_packed(place(folder, side), config, each, act)
    for side, (kind, axis) in ONNX.items():
        act = bf.symmetric(bits=8, axis=axis)
        try:
            graph = onnx_bert.build_onnx(config, packed, act, kind)
        except ConfigError as error:  # too small a shape for it
            common.say(f"left out: {error.problem}")
            continue
        place(folder, side).write_bytes(graph.SerializeToString())
    graph = onnx_bert.build_onnx(config, packed, None, "onnx-fp32")
    place(folder, FLOAT).write_bytes(graph.SerializeToString())
    logging.disable(logging.WARNING)  # it recommends a step that changes nothing here
    from onnxruntime import quantization

    quantization.quantize_dynamic(place(folder, FLOAT), place(folder, DYNAMIC))
    if all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        with contextlib.redirect_stdout(sys.stderr):  # where its bars do not disturb
            write_openvino(place(folder, FLOAT), place(folder, OPENVINO))
    kinds = {OPENVINO: ".bin"}
    return {
        side: place(folder, side).with_suffix(kinds.get(side, ".model")).stat().st_size
        for side in sides(folder)
    }


def write_openvino(source: Path, target: Path) -> None:
    """Quantise as OpenVINO's users do: weights and activations, by a few examples."""
    import nncf
    import openvino

    examples = nncf.Dataset([batch(1, 128)])
    made = nncf.quantize(
        openvino.Core().read_model(source),
        examples,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=1,
        preset=nncf.QuantizationPreset.MIXED,
    )
    openvino.save_model(made, target.with_suffix(".xml"))
    target.touch()  # what the other sides have


def sides(folder: Path) -> list[str]:
    """Return the sides whose files are there."""
    return [side for side in SIDES if place(folder, side).exists()]


def place(folder: Path, side: str) -> Path:
    """Return the file of a side."""
    return folder / f"{side.replace(' ', '_').replace(',', '')}.model"


def batch(rows: int, length: int) -> dict[str, np.ndarray]:
    """Return random words without padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 500, (rows, length)).astype(np.int64)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def use(threads: int) -> None:
    """Keep this process, and what XLA starts in it, to so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def engine(folder: Path, side: str, threads: int) -> Callable[[dict], np.ndarray]:
    """Return the engine that runs a side's file."""
    if side == PACKED or side in NATIVE:
        from bitflax.inference import engines
        from bitflax.packed import file

        found = file.read_packed(place(folder, side))
        kind = "jax" if side == PACKED else "native"
        count = None if side == PACKED else threads
        return engines.make_engine(kind, *found[:3], count)
    if side == OPENVINO:
        return openvino_engine(place(folder, side).with_suffix(".xml"), threads)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for work must not take the cores of the side that comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        place(folder, side), options, providers=["CPUExecutionProvider"]
    )
    return lambda feed: session.run(["logits"], feed)[0]


def openvino_engine(path: Path, threads: int) -> Callable[[dict], np.ndarray]:
    """Return OpenVINO's engine, compiled for each shape that it meets."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }

    @functools.cache
    def compiled(shape: tuple[int, int]) -> Any:
        model = core.read_model(path)
        model.reshape({part.any_name: list(shape) for part in model.inputs})
        return core.compile_model(model, "CPU", options).create_infer_request()

    def engine(feed: dict) -> np.ndarray:
        request = compiled(feed["input_ids"].shape)
        return next(iter(request.infer(feed).values()))

    return engine


def child_load(folder: Path, side: str, threads: int) -> dict[str, float]:
    """Load one side in this process: seconds to the first answer, and bytes."""
    use(threads)
    if side in NATIVE:
        import bitflax
    elif side == OPENVINO:
        import openvino  # noqa: F401
    elif side == PACKED:
        import jax

        import bitflax  # noqa: F401

        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.devices()
    else:
        import onnxruntime  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before, began = peak(), time.perf_counter()
    engine(folder, side, threads)(batch(1, 32))
    return {"seconds": time.perf_counter() - began, "bytes": peak() - before}


def peak() -> int:
    """Return the most bytes that this process has held; Linux alone says it.

    ``ru_maxrss`` would be at least what the parent held when it started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(found)


def child_time(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Time all sides in this process, alternating, at every shape."""
    use(threads)
    from tests.benchmarks import common

    made = {side: engine(folder, side, threads) for side in sides(folder)}
    found: dict[str, Any] = {}
    for rows, length in SHAPES:
        feed, often = batch(rows, length), rounds if rows == 1 else 1 + rounds // 4
        turns = {side: turn(run, feed) for side, run in made.items()}
        sums = common.alternate(
            {side: call for side, (call, _) in turns.items()}, often
        )
        times = {
            side: common.Times(each.wall / turns[side][1], each.cpu / turns[side][1])
            for side, each in sums.items()
        }
        found[f"{rows}x{length}"] = {
            side: each.summary() | {"float32 / this": common.ratio(times[FLOAT], each)}
            for side, each in times.items()
        }
    return found


def turn(run: Callable[[dict], Any], feed: dict) -> tuple[Callable[[], None], int]:
    """Return a call that answers again and again for a tenth of a second; how often.

    As a model that serves does: where each side answered once, all of its weights came
    from memory, which the sides before it had filled.
    """
    run(feed)
    began = time.perf_counter()
    run(feed)
    count = max(1, round(SECONDS / (time.perf_counter() - began)))

    def call() -> None:
        for _ in range(count):
            run(feed)

    return call, count


def child(name: str, *arguments: Any) -> dict[str, Any]:
    """Run one of the two above in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.inference", "--child", name]
    found = subprocess.run(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def measure(folder: Path, threads: int, rounds: int, count: int) -> dict[str, Any]:
    """Return load, memory and times of all sides with a number of threads."""
    loads: dict[str, list[dict[str, float]]] = {side: [] for side in sides(folder)}
    for number in range(1 + count):
        for side in loads:
            found = child("load", folder, side, threads)
            if number:  # the first one fills the caches
                loads[side].append(found)
    middle = {
        side: {key: float(np.median([f[key] for f in found])) for key in found[0]}
        for side, found in loads.items()
    }
    return {"load": middle, "times": child("time", folder, threads, rounds)}


def rows_of(sizes: dict[str, int], found: dict[str, Any]) -> list[list[str]]:
    """Return the table's lines: a side each."""
    lines = []
    for side, load in found["load"].items():
        line = [side, f"{sizes[side] / 1e6:.1f}"]
        line += [f"{load['seconds']:.2f}", f"{load['bytes'] / 1e6:.0f}"]
        for rows, length in SHAPES:
            times = found["times"][f"{rows}x{length}"][side]
            faster = times["float32 / this"]
            line.append(f"{1e3 * times['wall'] / rows:.2f}")
            line += [f"{faster[clock]:.2f}" for clock in ("wall", "cpu")]
        lines.append(line)
    return lines


def main() -> None:
    """Measure every number of threads; table to stderr, JSON to stdout."""
    from tests.benchmarks import common

    options = common.parser(__doc__)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--loads", type=int, default=3, help="processes a side")
    args = common.parse(options)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = write_models(args.model, folder)
        for threads in args.threads:
            found = measure(folder, threads, args.rounds, args.loads)
            results[threads] = found
            common.say(
                f"\n{args.model}, {threads} threads, {args.rounds} rounds; ms a row"
            )
            head = ["side", "MB", "load s", "memory MB"]
            for rows, length in SHAPES:
                head += [f"{rows}x{length}", "faster", "CPU"]
            common.say(common.table(head, rows_of(sizes, found)))
    common.write("inference", args, {"bytes": sizes, "threads": results})


def run_child(name: str, folder: str, *rest: str) -> None:
    """Do what ``child`` asks for, and print it."""
    if name == "load":
        found: dict[str, Any] = child_load(Path(folder), rest[0], int(rest[1]))
    else:
        found = child_time(Path(folder), int(rest[0]), int(rest[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
    else:
        main()
