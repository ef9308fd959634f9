"""HTML pages that need nothing else: what those of a profile and of a run have in common."""
