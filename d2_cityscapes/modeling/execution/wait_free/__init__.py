"""RPN and ROI heads that train without asking the GPU for numbers all the time.

Detectron2 asks about 30 times an image and step: how many anchors are positive, which boxes are
finite, which RoIs lie on which level. Each time the host waits for all that is queued, and the GPU
then for the host. Here one step asks twice: for the proposals, behind their suppression, and for
the samples of the ROI heads. `parts` says which parts of a model are meant, `where` on which
devices.
"""
