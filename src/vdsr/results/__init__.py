"""Run records beside the paper's figures: what RESULTS.md and its pictures are made from."""
