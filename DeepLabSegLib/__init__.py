"""DeepLabV3+ segmentation of images and volumes."""
