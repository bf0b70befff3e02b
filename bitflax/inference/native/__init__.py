"""1-bit encoders in C++: compiled at its first use, called by its C interface."""

from bitflax.inference.native.building import build as build
from bitflax.inference.native.building import cache_folder as cache_folder
from bitflax.inference.native.building import failed_before as failed_before
from bitflax.inference.native.building import find_built as find_built
from bitflax.inference.native.building import find_compiler as find_compiler
from bitflax.inference.native.building import machine as machine
from bitflax.inference.native.building import targets as targets
from bitflax.inference.native.flat_file import seal as seal
from bitflax.inference.native.flat_file import to_flat as to_flat
from bitflax.inference.native.library import NativeModel as NativeModel
from bitflax.inference.native.library import check_threads as check_threads
from bitflax.inference.native.library import speed as speed
from bitflax.inference.native.library import usable_targets as usable_targets
