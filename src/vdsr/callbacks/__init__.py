"""What happens around training: one idea a file."""
