"""From a cohort to a model pack and its validation. No service."""
