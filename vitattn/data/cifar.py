def make(config, argument, split):
    raise NotImplementedError
