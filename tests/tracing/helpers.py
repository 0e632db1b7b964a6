"""Networks and views of workloads for the tests of the trace room."""

from torch import nn

from octo_exp.tracing import trace


def lenet5():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten()),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def traced(net, shape, *, batch_size=2, form="col2im", **options):
    return trace(net, shape, batch_size=batch_size, grad_input_form=form, **options)


def roles(workload):
    """Layer -> its roles, in order."""
    found = {}
    for gemm in workload.gemms:
        found.setdefault(gemm.layer, []).append(gemm.role)
    return found


def shapes(workload, layer):
    return {gemm.role: (gemm.m, gemm.n, gemm.k, gemm.count) for gemm in workload.gemms if gemm.layer == layer}
