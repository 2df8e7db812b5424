"""Networks that predict a set of masks, each with a class: `UniversalSegmentor` and its parts."""
