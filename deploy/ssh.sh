#!/usr/bin/env bash
# Workers on hosts that are reached by ssh: started, and stopped again.
#
#   export DSE_STORAGE=postgresql://me:secret@host/studies DSE_STUDY=digits
#   deploy/ssh.sh start lab1 lab2 'me@board-host --slot board=nucleo'
#   deploy/ssh.sh stop lab1 lab2 me@board-host
#
# After a host may come options of 'dse worker'. A worker outlives the connection and ends with the
# study; 'stop' sends it SIGTERM, and its trial goes to another one. dse must be on the path there
# (or DSE_COMMAND says where). It writes ~/.dse/STUDY.log and .pid on the host.
set -euo pipefail
action="${1:-}"
if [ "$#" -lt 2 ] || { [ "$action" != start ] && [ "$action" != stop ]; }; then
    echo "usage: $0 start|stop HOST..." >&2
    exit 2
fi
shift
: "${DSE_STUDY:?is not set: the name of the study}"
study=$(printf '%q' "$DSE_STUDY")
files="\"\$HOME/.dse/\"$study"

start() {
    : "${DSE_STORAGE:?is not set: the URL of the database, such as postgresql://me@host/studies}"
    # The URL travels on standard input: no 'ps' on either side shows it.
    # shellcheck disable=SC2029  # the rest is meant to be filled in here
    printf '%s\n' "$DSE_STORAGE" | ssh "$1" "read -r DSE_STORAGE; export DSE_STORAGE
        mkdir -p \"\$HOME/.dse\"
        nohup ${DSE_COMMAND:-dse} worker --study $study $2 >$files.log 2>&1 </dev/null &
        echo \$! >$files.pid"
}

stop() {
    # shellcheck disable=SC2029
    ssh "$1" "kill -TERM \$(cat $files.pid)"
}

for line in "$@"; do
    host="${line%% *}"
    "$action" "$host" "${line#"$host"}"
    echo "$host: $action"
done
