"""Quantizers, rules that give them to parameters, and weight splitting."""

from bitflax.quantization.learned_activations import LEAST_STEP as LEAST_STEP
from bitflax.quantization.learned_activations import clipped as clipped
from bitflax.quantization.learned_activations import elastic as elastic
from bitflax.quantization.learned_activations import lsq as lsq
from bitflax.quantization.quantizers import Axis as Axis
from bitflax.quantization.quantizers import asymmetric as asymmetric
from bitflax.quantization.quantizers import binarize as binarize
from bitflax.quantization.quantizers import symmetric as symmetric
from bitflax.quantization.quantizers import ternarize as ternarize
from bitflax.quantization.rules import Rules as Rules
from bitflax.quantization.rules import binarybert_1bit as binarybert_1bit
from bitflax.quantization.rules import binarybert_2bit as binarybert_2bit
from bitflax.quantization.rules import binarybert_act as binarybert_act
from bitflax.quantization.rules import bits_of as bits_of
from bitflax.quantization.rules import by_row as by_row
from bitflax.quantization.rules import elastic_act as elastic_act
from bitflax.quantization.rules import lsq_act as lsq_act
from bitflax.quantization.rules import quantize as quantize
from bitflax.quantization.rules import ternarybert_2bit as ternarybert_2bit
from bitflax.quantization.rules import xtc_1bit as xtc_1bit
from bitflax.quantization.rules import xtc_2bit as xtc_2bit
from bitflax.quantization.splitting import binary_rules as binary_rules
from bitflax.quantization.splitting import merge as merge
from bitflax.quantization.splitting import split as split
