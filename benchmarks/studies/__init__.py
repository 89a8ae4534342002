"""The studies, in the order in which their runs are made. Each file declares one."""

from benchmarks.studies import (
    ablations,
    beyond_memory,
    coverage,
    epoch_time,
    large_groups,
    long_groups,
    more_tables,
    patients,
    posterior,
    presets,
    prior_samples,
    processes,
    reference,
    rivals,
    scaling,
    settings,
    several_devices,
    step_time,
    streaming,
    table1,
    tables,
    unknown_angles,
)

STUDIES = {
    module.STUDY.name: module.STUDY
    for module in (
        presets, settings, rivals, table1, unknown_angles, ablations, scaling, prior_samples, patients, reference,
        coverage, epoch_time, step_time, posterior, large_groups, long_groups, beyond_memory, streaming, processes,
        several_devices, tables, more_tables,
    )
}  # fmt: skip
