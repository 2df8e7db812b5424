"""RPN and ROI heads that train without asking the GPU for numbers all the time.

Detectron2 asks 26 times a step and 15 times an image: how many anchors are positive, which boxes
are finite, which RoIs lie on which level. Each time the host waits for all that is queued, and the
GPU then for the host. Here a step asks for the boxes that non-maximum suppression leaves (of two
large images at once), for the number of proposals, and for those of the samples of the ROI heads.
`parts` says which parts of a model are meant, `where` on which devices.
"""
