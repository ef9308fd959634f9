def imagenet(config, argument, split):
    raise NotImplementedError
