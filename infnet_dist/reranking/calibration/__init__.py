"""Logits -> probabilities that agree with how often the labels are 1."""
