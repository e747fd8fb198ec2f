"""The networks: blocks, encoders, trunks, and the model that wraps them."""
