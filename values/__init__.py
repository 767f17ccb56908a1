"""How good a choice is, and how sure that is: learnt from stored samples, shared by search and predictor."""
