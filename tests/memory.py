"""Peak memory, as the allocator reports it."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak(function: Callable[[], object]) -> int:
    """The peak number of bytes allocated while ``function`` runs, beyond those allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most
