"""Types of arrays that several packages hand to each other."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""float64, of the shape that the docstring gives."""

IntArray = NDArray[np.int64]
"""int64, likewise."""
BoolArray = NDArray[np.bool_]
"""bool, likewise."""
