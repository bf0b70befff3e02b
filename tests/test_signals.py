"""Signals that end a command: their status, one line, and whom they leave alone."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

import bitflax
from bitflax import cli, commands, signals

LINE = f"{signals.WORDS}\n"
ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


def command(code: str) -> list[str]:
    """Return a command of Python's that stands for ours, as its argv[0] says."""
    return [sys.executable, "-c", f"import sys\nsys.argv = ['bitflax', 'ls']\n{code}"]


def asked(argv, number, ready="go\n", **options):
    """Return a process's status and stderr that a signal reaches once it said so."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(argv, **pipes, **options) as process:
        assert process.stdout.readline() == ready
        process.send_signal(number)
        return process.wait(20), process.stderr.read()


def test_what_comes_before_the_handlers_is_quick():
    code = """
        import sys
        exec(open(sys.argv[1]).read(), {"__name__": "signals"})
        print({"typing", "numpy", "jax"} & sys.modules.keys())
    """
    argv = [sys.executable, "-S", "-c", textwrap.dedent(code), signals.__file__]
    made = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert made.stdout == "set()\n"


@pytest.mark.parametrize("number", ALL)
def test_from_the_first_import_on_a_signal_ends_the_command(number):
    # A heavy package that never comes to its end, in front of all others.
    code = """
        import sys, time
        class Slow:
            def find_spec(self, name, *_):
                if name == "jax":
                    print("go", flush=True)
                    try:
                        time.sleep(60)
                    except BaseException:
                        time.sleep(60)  # a library that swallows what is raised
        sys.meta_path.insert(0, Slow())
        import bitflax.cli
    """
    said = asked(command(textwrap.dedent(code)), number)
    assert said == (128 + number, LINE)


def test_a_script_that_imports_bitflax_keeps_its_handlers():
    code = "import signal, bitflax; print(signal.getsignal(signal.SIGTERM).name)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout == "SIG_DFL\n"


@pytest.mark.parametrize("number", ALL)
def test_a_command_ends_where_nothing_is_to_be_saved(number):
    code = """
        import time
        from bitflax import cli, commands
        def command(args):
            print("go", flush=True)
            try:
                time.sleep(60)
            finally:
                time.sleep(60)
        commands.ls_command = command
        sys.exit(cli.main())
    """
    said = asked(command(textwrap.dedent(code)), number)
    assert said == (128 + number, LINE)


def test_nohup_hears_no_sighup():
    code = """
        import time
        from bitflax import cli, commands
        def command(args):
            print("go", flush=True)
            time.sleep(0.5)
        commands.ls_command = command
        sys.exit(cli.main())
    """
    deaf = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    argv = command(deaf + textwrap.dedent(code))
    assert asked(argv, signal.SIGHUP) == (0, "")


@pytest.mark.parametrize("number", ALL[1:])
def test_a_call_of_main_has_its_handlers_put_back(number, monkeypatch, capsys):
    saved = []

    def command(args):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            signal.raise_signal(number)  # a second one does not disturb
            saved.append("checkpoint")
            raise

    monkeypatch.setattr(commands, "ls_command", command)
    before = signal.getsignal(number)
    assert cli.main(["ls"]) == 128 + number
    assert saved == ["checkpoint"]
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err == LINE


def test_what_the_command_prints_is_all_there_and_threads_do_not_hold_it():
    code = """
        import threading, time
        from bitflax import cli, commands
        def command(args):
            threading.Thread(target=time.sleep, args=(60,)).start()
            print("one line")
        commands.ls_command = command
        sys.exit(cli.main())
    """
    began = time.monotonic()
    argv = command(textwrap.dedent(code))
    found = subprocess.run(argv, capture_output=True, text=True, timeout=50)
    assert (found.returncode, found.stdout, found.stderr) == (0, "one line\n", "")
    assert time.monotonic() - began < 40


def test_the_module_is_the_first_that_bitflax_imports():
    with open(bitflax.__file__) as file:
        imports = [line for line in file if line.startswith(("import", "from"))]
    assert imports[0].startswith("import bitflax.signals")
