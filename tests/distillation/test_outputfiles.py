import numpy as np
import pytest

from bitflax.distillation import teacher_outputs
from bitflax.errors import StorageError


def filled(folder):
    files = teacher_outputs.Files(folder)
    assert not files.whole
    files.array("a", (3, 2))[:] = np.arange(6).reshape(3, 2)
    files.array("none", (0, 4))
    files.finish()
    return folder


def test_what_is_whole_is_read_again(tmp_path):
    files = teacher_outputs.Files(filled(tmp_path / "made"))
    assert files.whole
    found = files.array("a", (3, 2))
    np.testing.assert_array_equal(found, np.arange(6).reshape(3, 2))
    assert isinstance(found, np.memmap)
    assert files.array("none", (0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_what_was_not_finished_is_made_anew(tmp_path):
    files = teacher_outputs.Files(tmp_path / "made")
    files.array("a", (3, 2))[:] = 1
    again = teacher_outputs.Files(tmp_path / "made")
    assert not again.whole
    np.testing.assert_array_equal(again.array("a", (3, 2)), 0)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_what_changed_since_is_made_anew(tmp_path, damage):
    path = filled(tmp_path / "made") / "a.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-4])
    assert not teacher_outputs.Files(tmp_path / "made").whole


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        teacher_outputs.Files(tmp_path / "made").array("a", (3, 2))


def test_the_digest_depends_on_everything():
    def digest(w=1.0, ids=(1, 2), names=("logits",)):
        tree = {"w": np.full(2, w, np.float32)}
        return teacher_outputs.digest(tree, {"ids": np.array(ids)}, names=names)

    assert digest() == digest()
    others = [digest(w=2.0), digest(ids=(1, 3)), digest(names=("hidden_0",))]
    assert len({digest(), *others}) == 4
