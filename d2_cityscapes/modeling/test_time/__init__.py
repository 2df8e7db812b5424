"""How a trained model looks at a picture: in several sizes, mirrored, in windows."""
