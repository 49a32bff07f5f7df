"""Raw values -> what the model reads: every transform once, in numpy, and mirrored in torch.

Imports numpy alone (torch in `torch_backend`), so that a server needs nothing else.
"""
