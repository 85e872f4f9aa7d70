"""What the papers ask of the operator: numerical ranks, and the diagnosis of where a network loses them."""
