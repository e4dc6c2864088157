"""A run's folder and what keeps a run from being lost; of scenes and of fields alike."""
