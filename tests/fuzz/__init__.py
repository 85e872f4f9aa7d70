"""Bounded fuzzing of everything that takes a file, a command line or a memory budget: ``python -m fuzz --help``.

``mutations`` changes valid files, ``seeds`` has them made by other programs, ``readers`` are the independent readers
that what was accepted is compared with, ``targets`` put the three together, ``laws`` says what every case must obey,
and ``runner`` spreads the cases over processes that it can stop.
"""
