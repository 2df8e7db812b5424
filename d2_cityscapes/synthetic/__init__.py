"""The painter of synthetic street scenes; it knows the label table and nothing else of ours."""
