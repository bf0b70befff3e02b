"""What a stored model says: predictor, engines, exports."""

from bitflax.inference.asking import Asked as Asked
from bitflax.inference.asking import answers as answers
from bitflax.inference.asking import from_arguments as from_arguments
from bitflax.inference.asking import from_stdin as from_stdin
from bitflax.inference.asking import from_table as from_table
from bitflax.inference.engines import ENGINES as ENGINES
from bitflax.inference.exporting import EXPORT_FORMATS as EXPORT_FORMATS
from bitflax.inference.exporting import export as export
from bitflax.inference.inspection import tensor_sizes as tensor_sizes
from bitflax.inference.native_check import chosen_target as chosen_target
from bitflax.inference.native_check import self_test as self_test
from bitflax.inference.predictor import Predictor as Predictor
from bitflax.inference.predictor import load as load
from bitflax.inference.provenance import make_provenance as make_provenance
from bitflax.inference.stored_model import PACKED_COPY as PACKED_COPY
from bitflax.inference.stored_model import Verified as Verified
from bitflax.inference.stored_model import verify as verify
