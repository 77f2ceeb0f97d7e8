"""timm models behind one interface, and their weights in and out."""
