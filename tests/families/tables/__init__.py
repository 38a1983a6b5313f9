"""The families of the matrix, one file a kind."""

from tests.families.tables.decoders import DECODERS
from tests.families.tables.encoders import ENCODERS
from tests.families.tables.hub_styles import HUB_STYLES
from tests.families.tables.sundry import MORE, SUNDRY
from tests.families.tables.vision import VISION

FAMILIES = (*DECODERS, *ENCODERS, *VISION, *HUB_STYLES, *SUNDRY)
EVERY_FAMILY = (*FAMILIES, *MORE)
