"""Detection: boxes around the objects of an image, by RetinaNet."""
