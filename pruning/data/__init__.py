"""The user's conversations and pictures, up to batches."""
