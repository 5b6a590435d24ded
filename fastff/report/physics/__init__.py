"""Physical properties of student and teacher side by side.

Here: what fits a structure (:mod:`~fastff.report.physics.material`), what is measured and when it is left out
(:mod:`~fastff.report.physics.run`), one module for each family of properties, the record and the quantities derived
from it. Not here: errors on frames (:mod:`fastff.report.metrics`), the gate that a model file must pass by itself
(``fastff check``).
"""
