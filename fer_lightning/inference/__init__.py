"""Apply a trained model to pictures: input, face detection, classification, saliency maps, the demo page."""
