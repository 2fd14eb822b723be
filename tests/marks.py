"""Which values of a parametrized test belong to the long repeats of `make campaign`."""

import pytest


def long(*values):
  """Returns the values of one case, marked as a long repeat."""
  return pytest.param(*values, marks=pytest.mark.campaign)
