"""Operations, one file each: the public function, its fp64 reference, and the choice of a backend."""
