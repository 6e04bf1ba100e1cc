#!/bin/sh
# One worker (host) of a TPU slice, as launch.tpu uses it: in the unpacked archive of a
# checkout, or of an installed vit_jax,
#
#     sh launch/worker.sh install          once; makes .venv
#     sh launch/worker.sh run ID COMMAND...    starts it, follows it, exits with its code
#     sh launch/worker.sh stop ID          SIGTERM, and waits until it has saved
#
# A run is a process of its own, apart from the connection: when that breaks, gcloud
# connects again and gives the same command, which then only follows what is running.
set -eu
export PYTHONUNBUFFERED=1
cd "$(dirname "$0")/.."
runs=$HOME/vit_jax_runs
me=$(uname -n | sed 's/^t1v-n-//')

install() {
    test -e .venv/.installed && return
    # TPU VMs come with an older Python than vit_jax needs.
    python=$(sh requirements/find-python.sh 3.11 3.12 3.13 2>/dev/null) || {
        sudo apt-get -qq update
        sudo apt-get -qq install -y python3.11 python3.11-venv
        python=$(sh requirements/find-python.sh 3.11)
    }
    "$python" -m venv --clear .venv
    version=$(.venv/bin/python -c 'import sys; print("%d%d" % sys.version_info[:2])')
    pins=requirements/lock-py$version.txt
    test -e "$pins" || pins=requirements/latest.txt
    # jax[tpu] names the libtpu that goes with it; the pinned one is for plans.
    grep -v '^libtpu==' "$pins" >.venv/pins.txt
    if wheel=$(ls ./vit_jax-*.whl 2>/dev/null); then
        set -- "${wheel}[tpu]"
    else
        set -- --editable '.[tpu]'
    fi
    .venv/bin/python -m pip install --quiet "$@" --constraint .venv/pins.txt
    touch .venv/.installed
}

# A run is a directory: log; pid of the command; keeper, the process that waits for it;
# code, when it has ended.

alive() {  # alive RUN: has it begun and not ended?
    test -e "$1/pid" && ! test -e "$1/code" && kill -0 "$(cat "$1/pid")" 2>/dev/null
}

end() {  # end RUN SECONDS: SIGTERM; SIGKILL if that has not helped by then
    alive "$1" || return 0
    kill -TERM "$(cat "$1/pid")" 2>/dev/null || true
    left=$(( $2 * 5 ))
    while alive "$1" && test $left -gt 0; do
        sleep 0.2
        left=$(( left - 1 ))
    done
    if alive "$1"; then kill -KILL "$(cat "$1/pid")" 2>/dev/null || true; fi
}

run() {
    run=$runs/$1
    shift
    mkdir -p "$runs"
    # launch.tpu has brought it; in the environment no other user can read it.
    VIT_JAX_RUN_KEY=$(cat "$HOME/vit_jax_run_key")
    export VIT_JAX_RUN_KEY
    lines=20  # of the log, when it is followed again
    if mkdir "$run" 2>/dev/null; then
        lines=+1
        # One that was left behind holds the chips.
        for other in "$runs"/*; do test "$other" = "$run" || end "$other" 60; done
        : >"$run/log"  # here, not in the keeper: `tail` below may be faster than it
        # shellcheck disable=SC2016  # expanded by the inner shell
        setsid nohup sh -c '
            run=$0
            "$@" & echo $! >"$run/pid"
            code=0; wait $! || code=$?
            echo $code >"$run/code.part"; mv "$run/code.part" "$run/code"
        ' "$run" "$@" >>"$run/log" 2>&1 </dev/null &
        echo $! >"$run/keeper.part"; mv "$run/keeper.part" "$run/keeper"
    fi
    until test -e "$run/keeper"; do sleep 0.1; done
    tail -n "$lines" -s 0.2 --pid="$(cat "$run/keeper")" -f "$run/log" |
        sed -u "s/^/[$me] /"
    code=$(cat "$run/code" 2>/dev/null || echo 137)  # no code: killed with its keeper
    test "$code" = 0 || echo "[$me] exited with $code"
    exit "$code"
}

stop() {
    run=$runs/$1
    mkdir -p "$runs"
    if mkdir "$run" 2>/dev/null; then  # not begun: then it will not begin
        : >"$run/log"
        echo 75 >"$run/code"
        echo $$ >"$run/keeper"
    else
        until test -e "$run/pid" || test -e "$run/code"; do sleep 0.1; done
        end "$run" 300
    fi
}

action=$1
shift
case $action in
    install) install ;;
    run) run "$@" ;;
    stop) stop "$@" ;;
    *) echo "worker.sh: install, run or stop, not $action" >&2; exit 2 ;;
esac
