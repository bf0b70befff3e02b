"""What must hold after a fault, whatever it was."""

import re

from tests.faults import runs

KNOWN = {65, 66, 69, 73, 74, 75, 76, 78, 79}


def same_end(run, status: int, out, whole: dict) -> None:
    """Check that a run came to the end that an undisturbed one has."""
    assert status == 0, run.said
    assert "Traceback" not in run.said
    found = runs.end(out)
    assert [name for name in whole if found.get(name) != whole[name]] == []


def one_block(said: str, status: int) -> None:
    """Check that an error is told once, with its mend, and that nothing else is."""
    assert status in KNOWN, said
    assert said.count("bitflax: error: ") == 1, said
    last = said[said.index("bitflax: error: ") :]
    assert re.fullmatch(r"bitflax: error: [^\n]+\nfix: [^\n]+\n", last), said
    assert "internal" not in last, said
    assert "Traceback" not in said, said
