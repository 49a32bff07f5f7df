"""The ranking model: lookups -> tokens -> tower -> logits -> losses."""
