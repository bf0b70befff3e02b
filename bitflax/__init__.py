"""bitflax: turn a fine-tuned BERT into a 1-bit BERT by knowledge distillation."""

from bitflax.depth import layer_pairs as layer_pairs
from bitflax.depth import take_layers as take_layers
from bitflax.depth import uniform_layers as uniform_layers
from bitflax.losses import attention_kl as attention_kl
from bitflax.losses import hidden_mse as hidden_mse
from bitflax.losses import label_cross_entropy as label_cross_entropy
from bitflax.losses import label_mse as label_mse
from bitflax.losses import logits_mse as logits_mse
from bitflax.losses import score_mse as score_mse
from bitflax.losses import soft_cross_entropy as soft_cross_entropy
from bitflax.losses import total as total
from bitflax.losses import weighted as weighted
from bitflax.model import bert as bert
from bitflax.model import init_params as init_params
from bitflax.pretrained import load_pretrained as load_pretrained
from bitflax.parallel import data_parallel as data_parallel
from bitflax.parallel import mesh as mesh
from bitflax.parallel import pmapped as pmapped
from bitflax.parallel import shard_batch as shard_batch
from bitflax.quantizers import asymmetric as asymmetric
from bitflax.quantizers import binarize as binarize
from bitflax.quantizers import symmetric as symmetric
from bitflax.quantizers import ternarize as ternarize
from bitflax.recipe import Data as Data
from bitflax.recipe import Init as Init
from bitflax.recipe import Recipe as Recipe
from bitflax.recipe import Stage as Stage
from bitflax.recipe import Teacher as Teacher
from bitflax.recipe import override as override
from bitflax.recipefiles import load_recipe as load_recipe
from bitflax.rules import quantize as quantize
from bitflax.rules import xtc_1bit as xtc_1bit
from bitflax.rules import xtc_2bit as xtc_2bit
from bitflax.training import init_state as init_state
from bitflax.training import make_eval_step as make_eval_step
from bitflax.training import make_optimizer as make_optimizer
from bitflax.training import make_train_step as make_train_step
from bitflax.types import BertConfig as BertConfig
from bitflax.types import Mean as Mean
from bitflax.types import Optim as Optim
from bitflax.types import Outputs as Outputs
from bitflax.types import TrainState as TrainState

__version__ = "0.1.0"
