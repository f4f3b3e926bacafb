"""GRPO for judges: verl's own trainer, with a policy that answers by itself if there is no inference server."""
