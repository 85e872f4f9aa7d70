"""Operations, one file each: the public function, its fp64 reference, and its form on each backend.

The backend itself is chosen where a network comes in: by ``ntk``, ``jacobian`` and ``fit``.
"""
