"""What outlives the server: uploaded files and batches, in the state directory."""
