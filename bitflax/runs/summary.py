"""What is printed when a run is done: its files, and commands that use them."""

import shlex

from bitflax import files
from bitflax.data import Task, has_dev, is_hub_data, named_task
from bitflax.progress import columns, escaped
from bitflax.recipe import Data
from bitflax.runs.cleaning import resume_bytes
from bitflax.runs.experiment import Experiment
from bitflax.runs.results import PACKED


def run_summary(experiment: Experiment) -> str:
    """Return the run's files and the next commands, as lines."""
    path, data = experiment.run.path, experiment.recipe.data
    task = experiment.student_data and experiment.student_data.task
    rows, packed = [], path / PACKED
    if packed.is_file():
        size = f"{packed.stat().st_size / 1e6:,.2f} MB"
        rows.append(("packed file", f"{packed}, {size}"))
    rows.append(("report", str(path / "report.html")))
    where = shlex.quote(str(path))
    if data is not None and task is not None:
        rows.append(("next", f"bitflax predict {where} {_example(task)}"))
        rows.append(("", f"bitflax eval {where} {_task(data, task)}"))
        form = "onnx-int8" if packed.is_file() else "hf"
        rows.append(("", f"bitflax export {where} --format {form}"))
    spare = f"{resume_bytes(path) / 1e6:,.1f} MB"
    rows.append(("to spare", f"{spare} that a resume needs: bitflax clean {where}"))
    return columns(rows, "<<")


def _example(task: Task) -> str:
    """Return a dev example of about 40 characters, quoted for a command line."""
    texts = [*zip(*task.dev.texts, strict=True)]
    plain = [text for text in texts if not any(part[:1] == "-" for part in text)]
    first, *second = min(plain or texts, key=lambda text: abs(sum(map(len, text)) - 40))
    said = [shlex.quote(escaped(text[:80])) for text in (first, *second)]
    return " --pair ".join(said)


def _task(data: Data, task: Task) -> str:
    """Return the options of ``bitflax eval`` that measure on the run's dev examples."""
    if named_task(data.task):
        folder = f" --data-dir {shlex.quote(data.data_dir)}" if data.data_dir else ""
        return f"--task {data.task}{folder}"
    dev = None
    if not isinstance(data.task, str):  # in memory: no command can name it
        name = "TEST.csv"
    elif is_hub_data(data.task):
        name, dev = data.task, data.dev or (None if has_dev(task) else "SPLIT")
    else:  # without a dev file: the data file holds the training examples too
        name = data.dev or ("TEST" + (files.given(data.task).suffix or ".csv"))
    text = data.text if isinstance(data.text, str) else ",".join(data.text or ())
    options = {"--text": text, "--label": data.label, "--dev": dev}
    said = [f"--task {shlex.quote(name)}"]
    said += [f"{name} {shlex.quote(value)}" for name, value in options.items() if value]
    return " ".join(said)
