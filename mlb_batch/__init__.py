"""Captions and answers for a bucket of videos, in Parquet, at the compute budget you set."""
