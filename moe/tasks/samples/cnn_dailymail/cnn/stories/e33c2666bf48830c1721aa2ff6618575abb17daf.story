A ring lost in 1974 was found inside a carrot

The carrot had grown through it. The owner, now 79, wears it again.

@highlight

Ring lost in 1974 found in a carrot

@highlight

Its owner wears it again
