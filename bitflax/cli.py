"""The ``bitflax`` command: its arguments, its errors and its exit statuses.

What the subcommands do is in ``bitflax.commands``. An error that a person can fix is
two lines on stderr; only ``--debug`` shows a traceback.
"""

import argparse
import contextlib
import difflib
import errno
import importlib.metadata
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bitflax import commands, errors, inference, progress, signals, training
from bitflax.errors import BitflaxError, InputMissing, StorageError, UsageError

_MODEL = "a run's folder, a model's folder, a packed model.safetensors, or OWNER/NAME "
_MODEL += "of a hub"


class _Once(argparse.Action):
    """An option that keeps a value, and may not be given again."""

    given = False

    def __call__(self, parser: Any, namespace: Any, values: Any, *_: Any) -> None:
        """Keep the value."""
        if self.given and self.option_strings:
            raise argparse.ArgumentError(self, "is given twice")
        self.given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are bitflax's.

    ``commands`` are the parsers of all subcommands, by name.
    """

    commands: Mapping[str, "_Parser"] = {}

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.register("action", None, _Once)

    def options(self) -> list[str]:
        """Return the names of its own options."""
        return re.findall(r"--[a-z][\w-]+", self.format_usage())

    def error(self, message: str) -> NoReturn:
        """Raise a usage error that names the nearest command, or option of its own."""
        fix = f"see `{self.prog} --help`"
        choice = re.search(r"COMMAND: invalid choice: '(.*?)'", message)
        option = re.search(r"unrecognized arguments:.*? (--[\w-]+)", message)
        if choice:
            message = f"no such command: {choice[1]}"
            fix = errors.nearest(choice[1], self.commands, "commands")
        elif option:
            message = f"no such option: {option[1]}"
            fix = self._mend(option[1])
        elif "is given twice" in message:
            fix = "leave one of them out"
        elif "invalid choice: 'onnx-2bit'" in message:
            message, fix = "onnx-2bit is gone", "onnx-int8, smaller and faster"
        raise UsageError(self.prog, message, fix=fix)

    def _mend(self, option: str) -> str:
        """Return the fix of an unknown option: the nearest one, or where it belongs."""
        own, name = self.options(), option.removeprefix("--")
        bare = [each.removeprefix("--") for each in own]
        if close := difflib.get_close_matches(name, bare, n=1, cutoff=0.6):
            return f"did you mean '--{close[0]}'?"
        if "--set" in own:
            return f"a dial is set by --set {name}=...; `bitflax show` lists them"
        if its := [n for n, c in self.commands.items() if option in c.options()]:
            return f"leave it out: it is an option of {' and '.join(its)}"
        return f"the options are: {', '.join(own)}"


def make_parser() -> _Parser:
    """Return the parser of the whole command line."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser = _Parser(
        prog="bitflax",
        description="Turn a fine-tuned BERT into a 1-bit BERT.",
        allow_abbrev=False,
        parents=[common],
    )
    version = f"bitflax {importlib.metadata.version('bitflax')}"
    parser.add_argument("--version", action="version", version=version)
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    parser.commands = parsers.choices

    def add(name: str, **options: Any) -> _Parser:
        made = parsers.add_parser(
            name,
            description=options["help"],
            allow_abbrev=False,
            parents=[common],
            **options,
        )
        made.commands = parsers.choices
        made.set_defaults(function=getattr(commands, f"{name}_command"))
        return made

    add("ls", help="list the recipes and the named tasks")
    _add_recipe(add("show", help="describe a recipe; nothing is run"))
    run = add("run", help="run a recipe; the same command again goes on with it")
    _add_recipe(run)
    run.add_argument("--out", required=True, metavar="DIR", help="the run's folder")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    fork = "copy what DIR has finished, up to the first stage with other settings"
    run.add_argument("--fork", metavar="DIR", help=fork)
    many = "run it with N seeds, each in a folder of its own in DIR, and print a table"
    run.add_argument("--seeds", type=int, metavar="N", help=many)
    _add_hosts(run)
    _add_tune(add("tune", help="run a recipe with several settings and compare them"))
    drawn = add("report", help="draw a run's page again, or one page of several runs")
    folders = "folders of finished runs"
    drawn.add_argument("runs", nargs="+", metavar="DIR", help=folders)
    page = "the page (report.html in the run's folder; of several: comparison.html)"
    drawn.add_argument("--out", metavar="FILE", help=page)
    clean = add("clean", help="remove a finished run's checkpoints and cache")
    clean.add_argument("run", metavar="DIR", help="the run's folder")
    _add_eval(add("eval", help="measure a model on a task"))
    predict = add("predict", help="print label, probability and text")
    predict.add_argument("model", metavar="DIR|FILE", help=_MODEL)
    _add_predict(predict)
    inspect = add("inspect", help="print every tensor's bits and bytes")
    inspect.add_argument("model", metavar="DIR|FILE", help=_MODEL)
    _add_verify(add("verify", help="check every byte of a packed file"))
    _add_export(add("export", help="write a model for others to run"))
    add("native", help="compile the native engine, test it, and measure it")
    _add_augment(add("augment", help="write a task's training examples with variants"))
    return parser


def _add_recipe(parser: _Parser) -> None:
    recipe = "a recipe's file, or a name that `bitflax ls` lists"
    parser.add_argument("recipe", metavar="RECIPE", help=recipe)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="A.B=C",
        help="set a dial or a field of the recipe; may be repeated",
    )


def _add_tune(parser: _Parser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="A.B=C,D",
        help="a dial or field and its values; repeated: all combinations are run",
    )
    out = "a folder for all runs; the same command again goes on"
    parser.add_argument("--out", required=True, metavar="DIR", help=out)
    seeds = "runs of each setting, with different seeds (1)"
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=seeds)
    parser.add_argument("--until", metavar="STAGE", help="stop each after this stage")
    _add_hosts(parser)


def _add_hosts(parser: _Parser) -> None:
    group = parser.add_argument_group(
        "many hosts",
        "give the same command on each host; TPU pods and Slurm need none of these",
    )
    at = "the address of process 0, the same for all"
    group.add_argument("--coordinator", metavar="HOST:PORT", help=at)
    group.add_argument("--processes", type=int, metavar="N", help="their number")
    this = "the number of this one, from 0"
    group.add_argument("--process", type=int, metavar="I", help=this)


def _add_eval(parser: _Parser) -> None:
    parser.add_argument("model", metavar="DIR|FILE", help=_MODEL)
    task = "a named task, a data file, or hf:NAME"
    parser.add_argument("--task", required=True, metavar="T", help=task)
    out = "write each example's text, labels and probabilities to this .jsonl file"
    parser.add_argument("--out", metavar="FILE", help=out)
    _add_data(parser)
    dev = "the file, or the split of hf:NAME, to measure on where the task has several"
    parser.add_argument("--dev", metavar="FILE|SPLIT", help=dev)
    _add_engine(parser)


def _add_engine(parser: _Parser) -> None:
    engine = "native: 1-bit products in C++; jax; onnx: ONNX Runtime, pip install "
    engine += "'bitflax[onnx]'; auto (default): native where it is faster, else jax"
    parser.add_argument(
        "--engine", choices=inference.ENGINES, default="auto", help=engine
    )
    threads = "the number of threads of native or onnx; by default one for each core"
    parser.add_argument("--threads", type=int, metavar="N", help=threads)


def _add_predict(parser: _Parser) -> None:
    texts = "texts, pairs with a tab between; without any, the lines of stdin"
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=texts)
    pair = "the second text of a pair; once for each TEXT"
    parser.add_argument("--pair", action="append", default=[], metavar="T", help=pair)
    table = "a .csv, .tsv or .jsonl file of texts"
    parser.add_argument("--csv", metavar="FILE", help=table)
    column = "the column of --csv that holds the texts, or two for pairs"
    parser.add_argument("--column", metavar="COLUMN[,COLUMN]", help=column)
    top = "print the K likeliest labels of each text, one a line"
    parser.add_argument("--top", type=int, metavar="K", help=top)
    lines = "print each answer as a line of JSON, with all probabilities (or --top's)"
    parser.add_argument("--json", action="store_true", help=lines)
    _add_engine(parser)


def _add_verify(parser: _Parser) -> None:
    model = "a packed model.safetensors, a run's folder, or OWNER/NAME of a hub"
    parser.add_argument("model", metavar="DIR|FILE", help=model)
    sha256 = "the expected SHA-256 of the whole file"
    parser.add_argument("--sha256", metavar="HEX", help=sha256)


def _add_export(parser: _Parser) -> None:
    parser.add_argument("model", metavar="DIR|FILE", help=_MODEL)
    form = "onnx-int8 and onnx-fp32: a file for ONNX Runtime; native: a file for the "
    form += "native engine, from C too; hf: a folder for transformers, in float32"
    parser.add_argument(
        "--format", required=True, choices=inference.EXPORT_FORMATS, help=form
    )
    out = "the file or folder to write; by default beside the model"
    parser.add_argument("--out", metavar="PATH", help=out)
    push = "upload the folder (hf) to a hub too; `hf auth login` says as whom"
    parser.add_argument("--push", metavar="OWNER/NAME", help=push)
    private = "make it private, where --push creates a new one"
    parser.add_argument("--private", action="store_true", default=None, help=private)


def _add_data(parser: _Parser) -> None:
    parser.add_argument("--data-dir", metavar="D", help="a folder in GLUE's layout")
    text = "the text's column, or two"
    parser.add_argument("--text", metavar="COLUMN[,COLUMN]", help=text)
    parser.add_argument("--label", metavar="COLUMN", help="the label's column")


def _add_augment(parser: _Parser) -> None:
    task = "a named task or a data file; its training examples are taken"
    parser.add_argument("task", metavar="TASK", help=task)
    out = "the .jsonl file to write"
    parser.add_argument("--out", required=True, metavar="FILE", help=out)
    _add_data(parser)
    parser.add_argument("--dev", metavar="FILE", help="the dev file of a data file")
    masked = "the folder of a BertForMaskedLM, which proposes words"
    parser.add_argument("--masked-lm", metavar="DIR", help=masked)
    vectors = "GloVe's .txt, or glove: the packaged ones"
    parser.add_argument("--vectors", metavar="FILE|glove", help=vectors)
    copies = "variants of each example (MNLI, QQP 10; SST-2, QNLI 20; others 30)"
    parser.add_argument("--copies", type=int, metavar="N", help=copies)
    for name, kind, default, text in (
        ("--probability", float, 0.4, "that a word is replaced"),
        ("--candidates", int, 15, "words of which one replaces a word"),
        ("--seed", int, 0, "of the variants, of --limit's choice and of a split"),
    ):
        parser.add_argument(
            name, type=kind, default=default, metavar="X", help=f"{text} ({default})"
        )
    limit = "take only N training examples"
    parser.add_argument("--limit", type=int, metavar="N", help=limit)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
      argv: the arguments; None: the process's own, which ends with the command.
    """
    if argv is not None:
        return _main(argv)
    signals.take_over()
    if isinstance(sys.stdout, io.TextIOWrapper):  # one of ASCII takes escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    status = _main(sys.argv[1:])
    signals.leave(status)
    return status


def _main(argv: Sequence[str]) -> int:
    try:
        if sys.stdout is None:
            problem, fix = "is closed, but results go there", "leave it open, or > FILE"
            raise StorageError("stdout", problem, fix=fix)
        with signals.heard(), progress.lines_shown():
            _dispatch(argv)
        sys.stdout.flush()
    except BaseException as error:
        if "--debug" in argv and not isinstance(error, SystemExit | BrokenPipeError):
            traceback.print_exc()
        error = training.lost_host(error) or error
        status = _status(error)
        training.leave_run(error, status)
        return status
    return 0


def _dispatch(argv: Sequence[str]) -> None:
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "predict" and not any(text.startswith("-") for text in rest):
        args.texts += rest  # argparse takes no texts that follow an option
    elif rest:
        own = parser.commands.get(args.command, parser)
        own.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command is None:
        fix = f"the commands are: {', '.join(parser.commands)}"
        raise UsageError("bitflax", "no command given", fix=fix)
    args.function(args)


def _status(error: BaseException) -> int:
    """Say what went wrong and return the exit status."""
    if isinstance(error, SystemExit):  # --help and --version
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):
        # Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        _say(signals.WORDS)
        return 128 + (error.args or (signal.SIGINT,))[0]
    told = error if isinstance(error, BitflaxError) else _told(error)
    _say(f"bitflax: error: {told}")
    return told.status


def _told(error: BaseException) -> BitflaxError:
    """Return what a person is told of an error that is none of bitflax's own."""
    if isinstance(error, OSError):
        return _storage(error)
    kind = type(error).__name__
    chosen = [n for n in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(n)]
    if chosen and not _has_device():
        problem = f"expected a device that is here, found {os.environ[chosen[0]]!r}"
        fix = "unset it, or set it to cpu; a GPU needs pip install 'bitflax[gpu]'"
        return errors.ConfigError(chosen[0], problem, fix=fix)
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        fix = "a smaller batch, as --set data.batch_size=8, or a shorter max_length"
        return BitflaxError("memory", f"out of memory ({kind})", fix=fix)
    first = (str(error).splitlines() or [""])[0]
    fix = "this is a bug in bitflax; add --debug for the traceback and report it"
    return BitflaxError("internal", f"{kind}: {first}", fix=fix)


def _has_device() -> bool:
    import jax

    with contextlib.suppress(Exception):
        return bool(jax.devices())
    return False


def _storage(error: OSError) -> BitflaxError:
    place, problem = error.filename or _full_stream(), error.strerror or str(error)
    if isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:
        return InputMissing(place, problem, fix="give a file or folder that is there")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space" if full else "check the disk and the folder's permissions"
    return StorageError(place, problem, fix=fix)


def _full_stream() -> str:
    """Return what an I/O error without a file's name is probably about."""
    try:
        sys.stdout.flush()  # fails again where stdout is what could not be written
        return "I/O"
    except (OSError, ValueError, AttributeError):
        return "stdout"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
