(Sample) -- A baker in Lund has baked a loaf as long as his street

It took forty helpers and two days. The neighbours ate it in an hour.

@highlight

Baker makes a loaf as long as his street

@highlight

Neighbours ate it in an hour
