"""The path from the model's socket to the log: random answers in random pieces, judged by the vendor's SDK."""
