"""A run folder that an earlier bitflax wrote is gone on with."""

import tarfile

from bitflax.inference import predictor
from bitflax.runs import log
from tests.helpers import oracles, tinyrun


def test_a_begun_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    with tarfile.open(oracles.GOLDEN / "run_begun.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # its recipe names task and teacher from there
    out = tmp_path / "run"
    before = log.read_log(out / "log.jsonl")
    done = [path for stage in ("0-teacher", "1-fp32") for path in files(out / stage)]
    assert done
    written = [(path.stat().st_mtime_ns, path.read_bytes()) for path in done]
    rows = tinyrun.run(tmp_path / "tiny.py", out, "task=kinds.tsv", "teacher=teacher")
    assert [row.name for row in rows] == ["teacher", "fp32", "onebit", "packed"]
    assert [(p.stat().st_mtime_ns, p.read_bytes()) for p in done] == written
    new = log.read_log(out / "log.jsonl")[len(before) :]
    assert {line["stage"] for line in new} == {"2-onebit"}
    assert min(line["step"] for line in new) > 6
    (said,) = predictor.load(out).predict(["my old dog"])
    assert said.label == "animal"


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
