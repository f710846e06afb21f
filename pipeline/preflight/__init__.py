"""What ends a run in seconds instead of an hour: asked of a plan's backends before anything is made for them."""
