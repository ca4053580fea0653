"""From images, local or public, to verified shards."""
