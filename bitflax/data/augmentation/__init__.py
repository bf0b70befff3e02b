"""A task's training examples in many variants (TinyBERT's augmentation)."""

from bitflax.data.augmentation.augment import Augment as Augment
from bitflax.data.augmentation.augment import check_out as check_out
from bitflax.data.augmentation.augment import load_augmented as load_augmented
from bitflax.data.augmentation.augment import write_augmented as write_augmented
from bitflax.data.augmentation.edits import EDITS as EDITS
from bitflax.data.augmentation.edits import edited as edited
