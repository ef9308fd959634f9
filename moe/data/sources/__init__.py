"""Sources of training data: records with random access, from one token cache or several."""
