(Sample) -- Three friends rowed across the strait in a boat made of milk cartons

The trip took nine hours. They raised 4,000 euros for a hospital.

@highlight

Friends cross strait in a boat of cartons

@highlight

The trip raised 4,000 euros
