"""Online finetuning of a policy that logged data trained."""
