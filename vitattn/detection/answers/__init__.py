"""What a detector says of images: detections of a batch, and their text, records and pictures."""
