"""Read and check everything that a run needs, before its first step."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from bitflax import distillation, files, manifests, model, progress, training
from bitflax.data import (
    Batches,
    Examples,
    Task,
    Tokenizer,
    Tokens,
    augmentation,
    buckets_for,
    digest,
    load_task,
    named_task,
    predictions,
)
from bitflax.errors import ConfigError
from bitflax.recipe import Data, Recipe
from bitflax.runs import checks
from bitflax.runs.experiment import Experiment, TaskData
from bitflax.runs.folder import RunFolder
from bitflax.runs.notices import data_notices
from bitflax.types import BertConfig, Model, Params, label_places

EVAL_ROWS = 64


def prepare(recipe: Recipe, run: RunFolder) -> Experiment:
    """Read and check everything that a run needs.

    Raises:
      BitflaxError: data, teacher or recipe are wrong; before any training.
    """
    folder = model.resolve_folder(recipe.teacher.model)
    tokenizer = Tokenizer.from_folder(folder)
    mesh = training.mesh()
    _pin_model(run, "teacher", folder)
    teacher, tasks = _read_teacher(recipe, folder)
    experiment = Experiment(recipe, run, mesh, tokenizer, teacher)
    if recipe.data is None or tasks is None:
        tokenizer.check(teacher.config, 0)
    else:
        experiment = _with_task(experiment, recipe.data, *tasks)
    _pin_others(experiment)
    ready = recipe.teacher.folder is not None
    shapes = checks.check_stages(experiment)
    files.need_space(run.path, _space(run.path, shapes, ready))
    if experiment.student_data and training.is_main_process():
        for note in experiment.student_data.task.notes:
            progress.tell(note)
    students, teachers = experiment.student_data, experiment.teacher_data
    if students is None or teachers is None or students.task.dev.labels is not None:
        return experiment
    return _with_predictions(experiment, students, teachers)


def _read_teacher(
    recipe: Recipe, folder: Path
) -> tuple[Model, tuple[Task, Task] | None]:
    """Return the teacher and what ``read_task`` gives; None: there is no task."""
    if recipe.data is None:
        return Model(*model.load_pretrained(folder)), None
    if recipe.teacher.folder is not None:
        teacher = Model(*model.load_pretrained(folder, seed=None))
        return teacher, read_task(recipe.data, teacher.config, ready=True)
    tasks = read_task(recipe.data)
    return _load_pretrained(recipe, folder, tasks[0]), tasks


def _with_task(
    experiment: Experiment, data: Data, task: Task, wide: Task
) -> Experiment:
    """Return the experiment with a task's data, numbered as teacher and students do."""
    recipe, run, mesh = experiment.recipe, experiment.run, experiment.mesh
    tokenizer, teacher = experiment.tokenizer, experiment.teacher
    _pin_task(run, data, task, wide)
    tokenizer.check(teacher.config, data.max_length)
    tokenizer.max_length = data.max_length
    plain, tokens, dev = (
        tokenizer.encode(part.texts, data.max_length, cache=run.cache)
        for part in (task.train, wide.train, task.dev)
    )
    for found in (plain, tokens, dev):
        found.check(teacher.config)
    task, wide = (_in_order(each, teacher.config) for each in (task, wide))
    sizes = [s.batch_size or 0 for s in recipe.stages if s.corpus is None]
    rows, most = max(data.batch_size, *sizes, 0), teacher.config.max_position_embeddings
    ready, parts = recipe.teacher.folder is not None, (plain, dev)
    said = data_notices(task, parts, tokenizer, most, data.max_length, rows, ready)
    notes = (*task.notes, *said)
    task, wide = (dataclasses.replace(each, notes=notes) for each in (task, wide))
    used = _used_words(recipe, teacher.config, tokenizer, [tokens, dev])
    plain, tokens, dev = (
        distillation.renumber_tokens(each, used) for each in (plain, tokens, dev)
    )
    encoder = sum(leaf.size for leaf in jax.tree.leaves(teacher.params["encoder"]))
    buckets = buckets_for(
        np.concatenate([tokens.lengths, dev.lengths]),
        data.max_length,
        training.shape_tokens(encoder),
    )
    measured = Batches(
        dev,
        batch_size=max(EVAL_ROWS, mesh.size),
        seed=0,
        buckets=buckets,
        multiple_of=mesh.size,
        pad_id=int(np.searchsorted(used, tokenizer.pad_id)),
    )
    fixed = (measured, buckets, used, recipe.rest)
    students, teachers = (
        TaskData(run, mesh, data, recipe.seed, t, x, *fixed)
        for t, x in ((wide, tokens), (task, plain))
    )
    return dataclasses.replace(experiment, student_data=students, teacher_data=teachers)


def _used_words(
    recipe: Recipe, config: BertConfig, tokenizer: Tokenizer, parts: list[Tokens]
) -> np.ndarray:
    """Return the ids of the words that occur, or all where rules need them all."""
    rules = [r for stage in recipe.stages for r in (stage.rules, stage.init.split)]
    if all(map(distillation.can_shrink_vocabulary, rules)):
        pads = (tokenizer.pad_id, config.pad_token_id)
        return distillation.used_ids(parts, *pads)
    return np.arange(config.vocab_size)


def read_task(
    data: Data, known: BertConfig | None = None, *, ready: bool = False
) -> tuple[Task, Task]:
    """Return the task as its teacher is fine-tuned on it, and as students learn it.

    The second is augmented, where the data say so.

    Args:
      data: the recipe's.
      known: the configuration of a ready teacher, whose classes and order are taken.
      ready: whether the teacher comes fine-tuned; if not, the data must have labels.

    Raises:
      BitflaxError: the data are missing or bad.
    """
    task = _load_task(data, known, ready)
    if data.augment is None:
        return task, task
    if data.augment == augmentation.EDITS:
        more = augmentation.edited(task.train, data.seed)
    else:
        more = augmentation.load_augmented(data.augment, task)
    sha256 = digest(more, task.dev, task.labels)
    return task, dataclasses.replace(task, train=more, sha256=sha256)


def _load_task(data: Data, known: BertConfig | None, ready: bool) -> Task:
    """Read the task; of own files, a ready teacher says classes and their order."""
    regression, classes = data.regression, None
    if known is not None and named_task(data.task) is None:
        regression = known.regression if regression is None else regression
        if known.id2label is not None and not regression:
            classes = known.labels
    task = load_task(
        data.task,
        data_dir=data.data_dir,
        text=data.text,
        label=data.label,
        dev=data.dev,
        seed=data.seed,
        limit=data.limit,
        regression=regression,
        classes=classes,
        labelled=not ready,
        metric=data.metric,
    )
    bare = task.train.labels is None and task.dev.labels is None
    if known is not None and bare:
        return dataclasses.replace(task, regression=known.regression)
    return task


def _with_predictions(
    experiment: Experiment, students: TaskData, teachers: TaskData
) -> Experiment:
    """Return the experiment with the teacher's predictions as the labels of dev."""
    scorer, params = students.scorer_of(experiment.teacher)
    config, logits = experiment.teacher.config, scorer.logits(params)
    said = predictions(logits, regression=config.regression)
    said = said.astype(np.float32 if config.regression else np.int32)
    names = () if config.regression else config.labels

    def labelled(one: TaskData) -> TaskData:
        dev = dataclasses.replace(one.task.dev, labels=said)
        task = dataclasses.replace(one.task, dev=dev, labels=names)
        return dataclasses.replace(one, task=task, scorers=[])

    return dataclasses.replace(
        experiment, student_data=labelled(students), teacher_data=labelled(teachers)
    )


def _load_pretrained(recipe: Recipe, folder: Path, task: Task) -> Model:
    taught = recipe.teacher
    if taught.epochs == 0:
        raise ConfigError(
            "Teacher",
            "neither an already fine-tuned folder nor epochs to fine-tune it are given",
            fix="set teacher.folder, or teacher.epochs to 3",
        )
    config, params = model.load_pretrained(
        folder,
        num_labels=1 if task.regression else len(task.labels),
        id2label=None if task.regression else task.labels,
        problem_type="regression" if task.regression else "single_label_classification",
        seed=recipe.seed,
    )
    return Model(config, params)


def _in_order(task: Task, config: BertConfig) -> Task:
    """Number the task's classes as the teacher does: by name, where it has names.

    Models of MNLI come with its classes in two orders; a wrong one scores 10 %.
    """
    if task.regression != config.regression:
        kinds = ("classes", "real numbers")
        raise ConfigError(
            "Teacher",
            f"the task has {kinds[task.regression]}, the teacher's config "
            f"{kinds[config.regression]}",
            fix="give a teacher of this task",
        )
    if task.regression or not task.labels:
        return task
    mine, its = config.labels, task.labels
    places = label_places(its, mine)
    if places is None and config.id2label is None and len(mine) == len(its):
        return task
    if places is None:
        raise ConfigError(
            "Teacher",
            f"the task's labels are {', '.join(its[:4])}, the teacher's "
            f"{', '.join(mine[:4])}",
            fix="give a teacher of this task, with the task's label names in id2label",
        )
    number = np.array(places, np.int32)

    def renumbered(examples: Examples) -> Examples:
        if examples.labels is None:
            return examples
        return dataclasses.replace(examples, labels=number[examples.labels])

    return dataclasses.replace(
        task,
        train=renumbered(task.train),
        dev=renumbered(task.dev),
        labels=mine,
    )


def _pin_others(experiment: Experiment) -> None:
    """Pin the corpora and the models that stages use besides data and teacher."""
    run, taught = experiment.run, experiment.recipe.teacher
    for number, stage in enumerate(experiment.recipe.stages, 1):
        if stage.corpus is not None:
            text = experiment.corpus_data.batches(number, stage)
            run.pin(f"corpus of {stage.name}", text.sha256, stage.corpus.source, {})
            if taught.folder is not None and taught.pretrained is not None:
                folder = model.resolve_folder(taught.pretrained)
                _pin_model(run, "pretrained teacher", folder)
        if stage.init.source not in ("previous", "teacher"):
            folder = model.resolve_folder(stage.init.source)
            _pin_model(run, f"start of {stage.name}", folder)


def _pin_model(run: RunFolder, name: str, folder: Path) -> None:
    sums = manifests.model_sums(folder)
    run.pin(name, manifests.sum_of(sums), folder, {n: s[:12] for n, s in sums.items()})


def _pin_task(run: RunFolder, data: Data, task: Task, wide: Task) -> None:
    parts = {"train": task.train, data.dev or "dev": task.dev}
    facts = {
        str(name): f"{len(part)} rows, {digest(part, part.take([]), ())[:12]}"
        for name, part in parts.items()
    }
    run.pin("data", task.sha256, task.name, facts | {"classes": [*task.labels]})
    if data.augment:
        rows = {"rows": len(wide.train)}
        run.pin("augmented data", wide.sha256, data.augment, rows)


def _space(run: Path, shapes: Mapping[str, Params], ready: bool) -> int:
    """Return the bytes that unfinished stages have still to write.

    A stage writes up to four checkpoints of three floats a parameter, and its result.
    What an interrupted stage has written already, and a ready teacher, do not count.
    """
    size = 0
    for number, (name, params) in enumerate(shapes.items()):
        folder = run / f"{number}-{name}"
        if (ready and number == 0) or (folder / "result.json").is_file():
            continue
        whole = 13 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
        held = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        size += max(whole - held, 0)
    return size
