"""From a finished run to a bundle: weights, description, graphs for other run times, model card."""
