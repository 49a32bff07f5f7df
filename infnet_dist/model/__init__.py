"""What is trained: lookups -> sparse -> tokens -> towers -> losses."""
