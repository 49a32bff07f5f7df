"""Raw logs -> a training set: encode ids, build histories, split by time, write, describe."""
