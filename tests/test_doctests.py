"""Every example in a docstring of the package is true."""

import doctest
import importlib
import pkgutil

import pytest

import inrfast


def examples():
    """Return all docstrings with examples; modules of kernels need Triton and hold none."""
    found = []
    for info in pkgutil.walk_packages(inrfast.__path__, "inrfast."):
        if info.name.endswith(("._C", ".__main__")) or info.name.startswith("inrfast.kernels"):
            continue
        module = importlib.import_module(info.name)
        found += [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    return found


EXAMPLES = examples()


def test_the_examples_were_found():
    assert {test.name for test in EXAMPLES} >= {"inrfast.training.fit.fit", "inrfast.grids.grid"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_an_example_is_true(example):
    written = []
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed = doctest.DocTestRunner(optionflags=options).run(example, out=written.append, clear_globs=False).failed
    assert not failed, "".join(written)
