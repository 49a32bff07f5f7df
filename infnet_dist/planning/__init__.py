"""Tables + topology -> plan file: estimate, search, review, load."""
