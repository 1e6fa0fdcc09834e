"""Random sessions in process: the product from the body of a request to its row, and a Claude that checks."""
