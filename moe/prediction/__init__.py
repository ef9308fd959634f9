"""Answers to a file of texts: its lines, and the finished ones that a later call resumes from."""
