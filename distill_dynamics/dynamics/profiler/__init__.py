"""Measuring: a backbone and images → Profile, in one pass or two, on one process or several."""

from distill_dynamics.dynamics.profiler.measure import profile_model, profile_ranges
from distill_dynamics.dynamics.profiler.pairs import compare_models
from distill_dynamics.dynamics.profiler.passes import FeatureModel
from distill_dynamics.dynamics.profiler.ranges import RangeMode, ValueRange

__all__ = ["FeatureModel", "RangeMode", "ValueRange", "compare_models", "profile_model", "profile_ranges"]
