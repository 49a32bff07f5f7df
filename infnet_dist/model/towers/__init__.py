"""The towers, one file per paper, torch only: Tokens -> logits [B, K]."""
