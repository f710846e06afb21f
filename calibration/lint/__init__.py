"""Whether samples are like the model's own and representative; it judges and changes nothing."""
