"""The 1-bit file: codes, metadata and tokenizer, written and read strictly."""

from bitflax.packed.bitfields import fields_to_bytes as fields_to_bytes
from bitflax.packed.bitfields import fields_to_values as fields_to_values
from bitflax.packed.file import FORMAT as FORMAT
from bitflax.packed.file import VERSIONS as VERSIONS
from bitflax.packed.file import StoredModel as StoredModel
from bitflax.packed.file import check_header as check_header
from bitflax.packed.file import guarded as guarded
from bitflax.packed.file import load_packed as load_packed
from bitflax.packed.file import read_packed as read_packed
from bitflax.packed.file import save_packed as save_packed
from bitflax.packed.file import size_report as size_report
from bitflax.packed.file import version_and_sizes as version_and_sizes
from bitflax.packed.packing import Rest as Rest
from bitflax.packed.packing import on_host as on_host
from bitflax.packed.packing import pack as pack
from bitflax.packed.packing import pack_leaf as pack_leaf
from bitflax.packed.packing import read_off_codes as read_off_codes
from bitflax.packed.packing import rest_of as rest_of
from bitflax.packed.packing import unpack as unpack
from bitflax.packed.safetensors_file import read_header as read_header
from bitflax.packed.safetensors_file import shown as shown
from bitflax.packed.sizes import ExpectedSize as ExpectedSize
from bitflax.packed.sizes import SizeRow as SizeRow
from bitflax.packed.sizes import parameter_bits as parameter_bits
from bitflax.packed.sizes import size_table as size_table
from bitflax.packed.tokenizer import check_tokenizer as check_tokenizer
