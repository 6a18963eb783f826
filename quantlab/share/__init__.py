"""What leaves the machine: submissions to the challenge, published models, and the index that lists them."""
