"""What a set of annotations says of its images, as arrays, with every mistake in it counted."""
