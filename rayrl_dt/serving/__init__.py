"""Acting with a policy outside of training."""
