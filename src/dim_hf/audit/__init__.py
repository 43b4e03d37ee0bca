"""What a pipeline gives away of the images that it was trained on."""
