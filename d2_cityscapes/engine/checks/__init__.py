"""What a config is checked for before hours are spent."""
