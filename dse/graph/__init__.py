"""The thin waist: one frozen network that accuracy, costs, memory plan and firmware all read."""
