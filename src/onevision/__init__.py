"""OneVision HPC: LLaVA-OneVision-1.5 as a job suite that can be rerun, checked, interrupted and resumed."""

__version__ = "0.1.0"
