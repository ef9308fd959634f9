A man of 90 has finished the jigsaw he began as a boy

One piece was under the floor all the time.

@highlight

Man finishes the jigsaw of his childhood
