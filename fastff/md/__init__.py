"""Molecular dynamics that stays on the device.

:mod:`~fastff.md.protocol` says what a potential must offer, :mod:`~fastff.md.settings` what a run is,
:mod:`~fastff.md.state` what moves. :mod:`~fastff.md.integrators` and :mod:`~fastff.md.barostat` are the equations,
:mod:`~fastff.md.engine` runs them in chunks without waiting for the device, and :mod:`~fastff.md.run` adds files,
restarts and guards: :func:`~fastff.md.run.simulate` is what ``fastff md`` calls.
"""
