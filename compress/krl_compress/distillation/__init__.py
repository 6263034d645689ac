"""From a configuration to a finished student.

``distill`` picks the teacher's task: ``classification``, ``generation`` or ``restoration``, each of which prepares a
``job.Job`` that ``job.carry_out`` carries out. ``data_free`` and ``quantization`` are options of classifiers;
``together`` trains networks that teach each other.
"""
