"""From texts to batches: files, named tasks, corpora, tokens, metrics."""

from bitflax.data.baselines import Baseline as Baseline
from bitflax.data.baselines import measure_baselines as measure_baselines
from bitflax.data.batches import Batches as Batches
from bitflax.data.batches import buckets_for as buckets_for
from bitflax.data.columns import to_examples as to_examples
from bitflax.data.corpus import CorpusBatches as CorpusBatches
from bitflax.data.examples import Examples as Examples
from bitflax.data.examples import NamedTask as NamedTask
from bitflax.data.examples import Task as Task
from bitflax.data.examples import digest as digest
from bitflax.data.examples import text_fault as text_fault
from bitflax.data.metrics import METRICS as METRICS
from bitflax.data.metrics import ByClass as ByClass
from bitflax.data.metrics import by_class as by_class
from bitflax.data.metrics import predictions as predictions
from bitflax.data.metrics import score as score
from bitflax.data.own_files import choose_texts as choose_texts
from bitflax.data.tables import Faults as Faults
from bitflax.data.tables import read_table as read_table
from bitflax.data.tasks import TASKS as TASKS
from bitflax.data.tasks import load_task as load_task
from bitflax.data.text import Tokenizer as Tokenizer
from bitflax.data.text import Tokens as Tokens
