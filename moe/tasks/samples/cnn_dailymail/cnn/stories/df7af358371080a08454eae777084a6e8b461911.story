A goat climbed onto the roof of the town hall and stayed there for a day

Firemen brought it hay, then a ladder.

@highlight

Goat spends a day on the town hall

@highlight

Firemen brought it hay
