"""The same network, faster: one size of input, one device, one precision.

`DeepLabV3Plus` stays as it is written; `fast_form` captures what it does, rewrites that and lowers it to the fastest
calls that the device has. In float32 the results differ by rounding only.
"""

from DeepLabSegLib.optimize.form import FastForm, FastForms, fast_form

__all__ = ["FastForm", "FastForms", "fast_form"]
