def sharded_checks(device, steps):
    return iter(())
