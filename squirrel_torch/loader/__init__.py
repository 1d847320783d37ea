"""Batches made in worker processes, and handed over through memory that is used again and again."""
