"""The folder that all processes of a run see; test_folder.py has the lock."""

import pytest

from bitflax import training
from bitflax.errors import OutputError
from bitflax.runs import folder_lock


def test_what_process_0_writes_is_seen_and_removed(tmp_path):
    (tmp_path / ".shared").write_text("of a run that was killed")
    folder_lock.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [None, "another run's"])
def test_another_folder_of_that_name_is_refused(there, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "SEEN_SECONDS", 0.0)
    monkeypatch.setattr(training, "broadcast", lambda write: "process 0's")
    if there:
        (tmp_path / ".shared").write_text(there)
    with pytest.raises(OutputError, match="not the folder that process 0 writes"):
        folder_lock.check_shared(tmp_path)
