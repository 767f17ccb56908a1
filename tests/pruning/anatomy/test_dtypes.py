"""What numpy decodes and what torch reads are the same numbers, and asking for sizes needs no torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pruning.anatomy.dtypes import DTYPE_BYTES, FLOAT_DTYPES, decode, dtype_name, torch_dtype


@pytest.mark.parametrize("name", FLOAT_DTYPES)
def test_every_float_dtype_is_read_as_torch_reads_it(name: str) -> None:
    dtype = torch_dtype(name)
    values = torch.tensor([0.0, -1.5, 3.14159, 6e-5, 60000.0, float("inf"), float("nan")], dtype=dtype)
    content = values.view(torch.uint8).numpy()
    assert dtype_name(dtype) == name
    assert len(content) == len(values) * DTYPE_BYTES[name]
    np.testing.assert_array_equal(decode(content, name), values.double().numpy())


def test_a_dtype_that_no_weights_have() -> None:
    assert dtype_name(torch.int8) == "F32"
    with pytest.raises(KeyError):
        torch_dtype("I8")


def test_torch_is_imported_by_the_function_that_needs_it() -> None:
    code = "import sys, pruning.anatomy.dtypes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
