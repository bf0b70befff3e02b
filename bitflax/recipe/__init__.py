"""A run as frozen dataclasses, how they are read, and how they are told."""

from bitflax.recipe.describe import describe_recipe as describe_recipe
from bitflax.recipe.describe import function_name as function_name
from bitflax.recipe.describe import resolved as resolved
from bitflax.recipe.describe import teacher_config as teacher_config
from bitflax.recipe.duration import default_steps as default_steps
from bitflax.recipe.duration import planned_optim as planned_optim
from bitflax.recipe.duration import planned_steps as planned_steps
from bitflax.recipe.loading import RecipeFile as RecipeFile
from bitflax.recipe.loading import load_recipe as load_recipe
from bitflax.recipe.loading import read_recipe as read_recipe
from bitflax.recipe.loading import recipe_files as recipe_files
from bitflax.recipe.loading import recipe_summary as recipe_summary
from bitflax.recipe.overrides import override as override
from bitflax.recipe.schema import Corpus as Corpus
from bitflax.recipe.schema import Data as Data
from bitflax.recipe.schema import Init as Init
from bitflax.recipe.schema import Recipe as Recipe
from bitflax.recipe.schema import Shape as Shape
from bitflax.recipe.schema import Stage as Stage
from bitflax.recipe.schema import Teacher as Teacher
from bitflax.recipe.schema import check_plan as check_plan
