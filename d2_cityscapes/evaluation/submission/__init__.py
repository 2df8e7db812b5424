"""What the test servers take."""
