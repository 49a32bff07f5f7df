"""The KuaiRand logs (arXiv 2208.08696) -> a training set."""
