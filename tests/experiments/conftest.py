"""Reproductions collect garbage before every cell: what other tests and libraries hold is kept out of that."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="package")
def frozen_heap():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
