"""Networks of timm as backbones."""
