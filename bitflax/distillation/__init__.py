"""Losses, what a student takes of its teacher, a teacher's kept outputs."""

from bitflax.distillation.losses import attention_kl as attention_kl
from bitflax.distillation.losses import hidden_mse as hidden_mse
from bitflax.distillation.losses import label_cross_entropy as label_cross_entropy
from bitflax.distillation.losses import label_mse as label_mse
from bitflax.distillation.losses import logits_mse as logits_mse
from bitflax.distillation.losses import score_mse as score_mse
from bitflax.distillation.losses import soft_cross_entropy as soft_cross_entropy
from bitflax.distillation.losses import soft_labels as soft_labels
from bitflax.distillation.projection import PROJECTION as PROJECTION
from bitflax.distillation.projection import add_projection as add_projection
from bitflax.distillation.projection import projected as projected
from bitflax.distillation.student import Importance as Importance
from bitflax.distillation.student import importance as importance
from bitflax.distillation.student import layer_pairs as layer_pairs
from bitflax.distillation.student import take_layers as take_layers
from bitflax.distillation.student import take_positions as take_positions
from bitflax.distillation.student import take_width as take_width
from bitflax.distillation.student import uniform_layers as uniform_layers
from bitflax.distillation.teacher_outputs import TeacherOutputs as TeacherOutputs
from bitflax.distillation.teacher_outputs import fill as fill
from bitflax.distillation.teacher_outputs import fingerprint as fingerprint
from bitflax.distillation.teacher_outputs import may_read_padding as may_read_padding
from bitflax.distillation.teacher_outputs import outputs_reader as outputs_reader
from bitflax.distillation.teacher_outputs import outputs_size as outputs_size
from bitflax.distillation.teacher_outputs import used_outputs as used_outputs
from bitflax.distillation.vocabulary import (
    can_shrink_vocabulary as can_shrink_vocabulary,
)
from bitflax.distillation.vocabulary import grow_vocabulary as grow_vocabulary
from bitflax.distillation.vocabulary import renumber_tokens as renumber_tokens
from bitflax.distillation.vocabulary import shrink_vocabulary as shrink_vocabulary
from bitflax.distillation.vocabulary import used_ids as used_ids
from bitflax.distillation.weighting import Weighted as Weighted
from bitflax.distillation.weighting import named as named
from bitflax.distillation.weighting import total as total
from bitflax.distillation.weighting import weighted as weighted
