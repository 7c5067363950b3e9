"""Every attack, with its positive control, at every level, as root and as an ordinary user."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.jail.attacks import ATTACKS, SUCCEEDED
from tests.system.jail.grounds import USERS, run_yard

KINDS = 78
LEVELS = ("namespaces", "guard", "partial")

RESIDUAL = {
    "namespaces": set[str](),
    "guard": {"see_that_a_path_exists"},
}
NETWORK_NOT_ENFORCED = RESIDUAL["guard"] | {
    *("dial_out", "dial_out_without_waiting", "dial_out_by_deferred_fast_open", "dial_any_address"),
    "dial_out_while_another_thread_changes_the_address",
    *("dial_another_program_on_the_loopback", "dial_another_loopback_address"),
    *("ask_the_resolver_by_tcp", "listen_without_an_address", "take_over_a_port"),
}

# Whose control cannot succeed everywhere, and why. What is not named here must succeed without a jail.
NEEDS_ROOT = {
    *("raw_socket", "packet_socket", "source_route", "read_the_passwords", "make_a_device"),
    *("read_the_memory_of_the_machine", "read_the_kernel_log", "type_into_a_terminal"),
    *("change_the_kernels_settings", "change_a_control_group", "join_a_namespace"),
    *("join_the_namespaces_of_a_process", "mount", "mount_the_new_way", "copy_a_mount"),
    *("change_the_root", "unmount", "load_a_kernel_program", "measure_the_machine"),
    *("watch_the_file_systems", "account_for_processes", "change_the_clock"),
    *("change_the_hosts_name", "become_root", "become_another_user", "change_the_groups"),
    *("keep_a_capability", "read_the_disk", "handle_page_faults", "resolve_a_name"),
}
NEEDS_THIS_KERNEL = {
    *("ping", "crypto_socket", "load_a_module", "load_a_module_from_a_file", "load_a_kernel"),
    *("use_the_ports_of_the_processor", "call_as_x32", "call_as_another_architecture", "io_uring"),
    *("dial_out_by_mptcp", "vsock_socket", "send_a_light_datagram", "dial_out_by_fast_open"),
    *("dial_out_by_fast_open_message", "make_a_user_namespace", "clone_into_a_user_namespace"),
    *(
        "clone3_into_a_user_namespace",
        "share_memory",
        "open_a_message_queue",
        "type_into_a_terminal",
    ),
    *("set_an_attribute", "use_the_keyring", "add_a_key", "read_the_disk", "dump_core"),
    *("change_a_control_group", "measure_the_machine", "compare_processes", "raise_a_limit"),
    *("watch_the_file_systems", "take_a_file_by_its_handle", "read_the_kernel_log"),
}


@functools.cache
def report_of(user: str) -> dict[str, Any]:
    return run_yard(user, "probe", "control", *LEVELS)


def successes(ends: dict[str, str]) -> set[str]:
    return {name for name, end in ends.items() if end == SUCCEEDED}


def assert_that_they_succeed(report: dict[str, Any], user: str) -> dict[str, str]:
    """All but those that are known to need something; which, and how they ended."""
    ends: dict[str, str] = report["control"]["ends"]
    assert set(ends) == set(ATTACKS)
    missed = {name: end for name, end in ends.items() if end != SUCCEEDED}
    # a root to whom a network of its own is refused is not quite root
    lesser = user == "ordinary" or report["walls"]
    may_miss = NEEDS_THIS_KERNEL | (NEEDS_ROOT if lesser else set())
    assert set(missed) <= may_miss, {n: e for n, e in missed.items() if n not in may_miss}
    assert len(ends) - len(missed) >= KINDS
    return missed


@pytest.mark.parametrize("user", USERS)
def test_without_a_jail_the_attacks_succeed(
    user: str, capsys: pytest.CaptureFixture[str], measured: Callable[..., None]
) -> None:
    missed = assert_that_they_succeed(report_of(user), user)
    ends = report_of(user)["control"]["ends"]
    worked = len(ends) - len(missed)
    measured(f"attacks, without a jail, as {user}", worked, f"≥ {KINDS}", "succeed", len(ends))
    with capsys.disabled():
        print(f"\n  as {user}: {worked} of {len(ends)} succeed without a jail; not:")
        print("    " + ", ".join(f"{name} ({end})" for name, end in missed.items()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", USERS)
def test_in_a_jail_they_do_not(user: str, level: str, measured: Callable[..., None]) -> None:
    report = report_of(user)
    told = report[level]
    lacking = report["probe"].get({"guard": "notify"}.get(level, level), "")
    if told["event"] == "failed":
        assert lacking, told["reason"]  # it fails closed, and says so
        assert told["ends"] == {}
        return
    assert told["level"] == level
    assert not lacking
    assert told["returncode"] == 0, told["tail"]
    ends = told["ends"]
    assert set(ends) == set(ATTACKS)
    if level == "partial":
        assert successes(ends) <= NETWORK_NOT_ENFORCED
        goal = ""  # the network is not enforced, and that is said
    else:
        assert successes(ends) <= RESIDUAL[level], ends
        goal = f"≤ {len(RESIDUAL[level])}"
    left = len(successes(ends))
    measured(f"attacks, at level {level}, as {user}", left, goal, "succeed", len(ends))


def test_on_an_older_kernel_the_filter_and_the_guard_do_what_landlock_does_not() -> None:
    """Version 4 came with Linux 6.7, version 1 with 5.13: no signals, no truncation, no devices."""
    report = run_yard(USERS[-1], "probe", "guard-landlock-4", "guard-landlock-1")
    for what in ("guard-landlock-4", "guard-landlock-1"):
        if report["probe"]["notify"]:
            assert report[what]["event"] == "failed"
        else:
            assert report[what]["returncode"] == 0, report[what]["tail"]
            assert successes(report[what]["ends"]) <= RESIDUAL["guard"], what


@pytest.mark.parametrize("user", USERS)
def test_where_user_namespaces_are_switched_off_the_guard_holds_and_is_what_is_reported(
    user: str, measured: Callable[..., None]
) -> None:
    if report_of(user)["walls"]:  # they are here anyway
        report = report_of(user)
    else:
        report = run_yard(user, "probe", "control", "namespaces", "guard", refuse=True)
        assert report["probe"]["namespaces"].endswith("No space left on device")
    assert_that_they_succeed(report, user)
    assert report["probe"]["namespaces"]
    assert not report["probe"]["notify"]
    assert report["namespaces"]["event"] == "failed"
    assert report["namespaces"]["ends"] == {}
    assert report["guard"]["level"] == "guard"
    ends = report["guard"]["ends"]
    assert successes(ends) <= RESIDUAL["guard"]
    what = f"attacks, at level guard, as {user}, namespaces switched off"
    measured(what, len(successes(ends)), "≤ 1", "succeed", len(ends))
