"""The bytes that are really alive at once, as the allocator reports them."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak(function: Callable[[], object]) -> int:
    """The most bytes alive at once while ``function`` runs, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most
