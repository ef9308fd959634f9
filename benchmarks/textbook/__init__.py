"""Our networks beside what a textbook writes for the same, compiled for TPUs."""
