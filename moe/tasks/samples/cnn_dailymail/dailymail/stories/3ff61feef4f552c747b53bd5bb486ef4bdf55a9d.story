The town of Vik has turned off its street lamps to see the stars

Shops lent out torches. The lamps return on Monday.

@highlight

Vik turns off its lamps to see the stars
