"""A text data set of TFDS, prepared with its own builder, read without TensorFlow."""

import shutil
import sys
import time

import pytest

from bitflax.data import tfds
from bitflax.data.corpus import CorpusBatches
from bitflax.data.tfds import Records
from bitflax.errors import ConfigError, DamagedFile, InputMissing

# What TFDS's own dependencies warn of when they are imported is not bitflax's doing.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

ARTICLE = "\n_START_ARTICLE_\nTitle {0}\n_START_PARAGRAPH_\nOne é {0}._NEWLINE_Two {0}."


@pytest.fixture(scope="module")
def known():
    """Make two small data sets known to TFDS, as it knows its own."""
    import tensorflow_datasets as tfds

    class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        feature = "text"

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({self.feature: text})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(40):
                yield i, {self.feature: ARTICLE.format(i)}

    class BitflaxMiniWiki(Base):
        pass

    class BitflaxNoText(Base):
        feature = "title"

    return BitflaxMiniWiki, BitflaxNoText


@pytest.fixture(scope="module")
def prepared(known, tmp_path_factory):
    """The folder where both are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    for made in known:
        with tfds.quiet():
            builder = made(data_dir=str(folder), file_format=tfds.FORMAT)
            builder.download_and_prepare()
    return folder


def all_lines(source):
    return [line for w in range(source.windows) for line in source.lines(w)]


@pytest.mark.parametrize("window", [1, 300, 1 << 20])
def test_every_record_is_read_once_without_its_marks(prepared, window):
    source = Records("bitflax_mini_wiki", prepared, window)
    lines = all_lines(source)
    expected = [
        line for i in range(40) for line in (f"Title {i}", f"One é {i}.", f"Two {i}.")
    ]
    assert sorted(lines) == sorted(expected)
    assert source.windows == {1: 40, 1 << 20: 1}.get(window, source.windows)
    if window == 300:
        assert 2 < source.windows < 40
    assert len(source.check()) == 64
    assert "tensorflow" not in sys.modules


def test_it_is_a_corpus(prepared, tokenizer, tmp_path):
    def make():
        return CorpusBatches(
            "bitflax_mini_wiki",
            tokenizer,
            length=16,
            batch_size=4,
            seed=0,
            cache=tmp_path,
            data_dir=prepared,
            window=500,
        )

    corpus = make()
    steps = range(2 * corpus.steps_per_epoch)
    expected = [corpus.batch(step)["input_ids"] for step in steps]
    assert (make().batch(steps[-1])["input_ids"] == expected[-1]).all()
    assert list(corpus.evaluation())


def test_a_data_set_without_texts_is_refused(prepared):
    with pytest.raises(ConfigError, match="no feature 'text'"):
        Records("bitflax_no_text", prepared)


@pytest.mark.parametrize("name", ["wikki40b/en", "wiki40b/no_such", "texts/wiki"])
def test_a_name_that_tfds_does_not_know_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a \.txt file, a folder") as error:
        Records(name, tmp_path)
    assert error.value.place == name


@pytest.mark.parametrize("name", ["wiki40b/en", "wikipedia/20230601.en"])
def test_offline_is_one_error_at_once(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(InputMissing, match="out of reach") as caught:
        Records(name)
    assert time.monotonic() - start < 20
    assert "tfds build" in caught.value.fix
    with pytest.raises(InputMissing, match="not prepared there"):
        Records(name, tmp_path)


def test_a_failed_download_is_one_error(known, tmp_path, monkeypatch):
    def fail(self, **settings):
        raise RuntimeError("the host went away\nand more")

    monkeypatch.setattr(tfds, "reachable", lambda url: True)
    monkeypatch.setattr(known[0], "download_and_prepare", fail)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputMissing, match="RuntimeError: the host went") as caught:
        Records("bitflax_mini_wiki")
    assert "and more" not in str(caught.value)


def test_damage_and_other_formats_are_errors_that_name_the_folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    (folder,) = (tmp_path / "copy" / "bitflax_mini_wiki").iterdir()
    source = Records("bitflax_mini_wiki", tmp_path / "copy")
    (file,) = folder.glob("*array_record*")
    file.write_bytes(b"")
    with pytest.raises(DamagedFile, match="delete the folder"):
        source.lines(0)
    file.rename(folder / file.name.replace("array_record", "tfrecord"))
    with pytest.raises(InputMissing, match="expected array_record files"):
        Records("bitflax_mini_wiki", tmp_path / "copy")
