"""Where images come from, which views of them are shown, and how batches of views reach the device."""
