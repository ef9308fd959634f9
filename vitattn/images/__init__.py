"""One image: which files are images, how they are decoded, augmented and normalised."""
