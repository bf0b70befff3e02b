"""One training: optimizer, step, devices, hosts, checkpoints."""

from bitflax.training.compile_cache import compiled_for_user as compiled_for_user
from bitflax.training.device_choices import chosen_dtype as chosen_dtype
from bitflax.training.device_choices import shape_tokens as shape_tokens
from bitflax.training.evaluation import Evaluator as Evaluator
from bitflax.training.hosts import barrier as barrier
from bitflax.training.hosts import broadcast as broadcast
from bitflax.training.hosts import initialize as initialize
from bitflax.training.hosts import is_main_process as is_main_process
from bitflax.training.hosts import process_part as process_part
from bitflax.training.loop import Training as Training
from bitflax.training.loop import train as train
from bitflax.training.lost_process import failures_told as failures_told
from bitflax.training.lost_process import leave_run as leave_run
from bitflax.training.lost_process import lost_host as lost_host
from bitflax.training.optimizer import bert_adam as bert_adam
from bitflax.training.optimizer import learning_rate as learning_rate
from bitflax.training.optimizer import make_optimizer as make_optimizer
from bitflax.training.parallel import data_parallel as data_parallel
from bitflax.training.parallel import mesh as mesh
from bitflax.training.parallel import pmapped as pmapped
from bitflax.training.parallel import replicate as replicate
from bitflax.training.parallel import shard_batch as shard_batch
from bitflax.training.parallel import to_local as to_local
from bitflax.training.steps import init_state as init_state
from bitflax.training.steps import make_eval_step as make_eval_step
from bitflax.training.steps import make_train_step as make_train_step
