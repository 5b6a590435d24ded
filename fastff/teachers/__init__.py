"""Teachers: the models and calculators whose labels a student learns.

Here: the public names. Not here: anything that imports a teacher's package; that happens when one is loaded.
"""

from fastff.teachers.base import Teacher, TeacherInfo
from fastff.teachers.registry import TeacherStatus, is_known, list_teachers, load_teacher

__all__ = ["Teacher", "TeacherInfo", "TeacherStatus", "is_known", "list_teachers", "load_teacher"]
