A parrot that says the name of its street was brought home by police

It had been missing for a week. Its owner had put up posters.

@highlight

Parrot told police where it lives

@highlight

It was missing for a week
