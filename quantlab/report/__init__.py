"""What a pack run reports: the JSON and the table drawn from it."""
