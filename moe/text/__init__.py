"""Documents as text: readers of data sets, files and rows, vocabularies."""
