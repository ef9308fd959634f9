Rain stopped the rain dance festival on Saturday

The organisers laughed. It will be held next week if the weather is dry.

@highlight

Rain dance festival stopped by rain
