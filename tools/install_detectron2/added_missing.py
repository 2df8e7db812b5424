"""Stand-ins for modules that need not be there: using them, not importing them, fails."""


class _Missing:
    """Any attribute, except Python's own, raises ImportError with one sentence."""

    def __init__(self, module, remedy):
        self._module = module
        self._remedy = remedy

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{name} needs {self._module}, which is not installed: {self._remedy}")


_C = _Missing(
    "detectron2._C",
    "this is a pure-Python build of Detectron2; build the official sources to have it.",
)

try:
    import cv2
except ImportError:
    cv2 = _Missing("cv2", "pip install opencv-python-headless.")
