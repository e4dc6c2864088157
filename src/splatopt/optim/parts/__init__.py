"""What optimizers are composed from: direction, step bound, acceptance and projection, and the loop that runs them."""
