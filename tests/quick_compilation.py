"""XLA's flags that make most tests shorter: half of their time is compilation."""

import importlib.metadata

# LLVM optimises nothing, and XLA joins loops by its older and shorter way, which the
# releases from 0.12 on no longer have: an unknown flag ends the process.
FLAGS = "--xla_backend_optimization_level=0"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
