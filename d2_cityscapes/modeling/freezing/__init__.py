"""What trains, and the proof that the rest did not move."""
