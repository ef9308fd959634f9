"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): one network that finds and names objects."""
