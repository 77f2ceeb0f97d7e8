"""What can be concluded from the predictions of several models for the same images."""
