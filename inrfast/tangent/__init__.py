"""The factors of a network, its Jacobian and its tangent kernel as operators."""
