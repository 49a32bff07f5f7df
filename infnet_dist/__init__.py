"""infnet_dist: sharded training of INFNet ranking models on TorchRec and Ray.

Importing the package imports nothing heavy, so that `infnet doctor` works even where
torch, torchrec or fbgemm are broken.
"""

__version__ = "0.1.0"
