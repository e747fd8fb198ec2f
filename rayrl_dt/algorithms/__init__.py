"""RLlib algorithms: configs, learners, env runners and what they share."""
